"""The shipped checkpoint on the frozen questions: 200 pictures in files, no fonts or icon sets needed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from recipes.mini.benchmark import Item
from recipes.mini.evaluate import ask
from recipes.mini.scoring import is_right

import fastvlm

FROZEN = Path(fastvlm.__file__).parent / "evaluation" / "mini_eval"
# Right answers out of all, a few points under what the shipped weights reach.
FLOOR = 0.88
FLOORS: dict[str, float] = {
    "easy_vqa": 0.86,
    "colours": 0.93,
    "shapes": 0.93,
    "unseen_pairs": 0.9,
    "counts_1_6": 0.8,
    "letters_digits_unseen_fonts": 0.86,
    "words3_unseen_fonts": 0.3,
}
MOST_BYTES, MOST_BYTES_A_FILE = 30_000_000, 16 * 2**20


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((FROZEN / "questions.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def right(rows: list[dict[str, Any]]) -> dict[str, list[bool]]:
    """Test -> whether each of its questions is answered right."""
    model, processor = fastvlm.load("mini", device="cpu", dtype="float32")
    items = []
    for row in rows:
        with Image.open(FROZEN / row["image"]) as picture:
            items.append(Item(picture.convert("RGB"), row["question"], tuple(row["answers"])))
    result: dict[str, list[bool]] = defaultdict(list)
    for row, item, answer in zip(rows, items, ask(model, processor, items), strict=True):
        result[row["test"]].append(is_right(answer, item.answers))
    return result


def test_there_are_200_questions_in_less_than_2_megabytes(rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 200
    assert sum(path.stat().st_size for path in FROZEN.iterdir()) < 2_000_000


def test_the_shipped_folder_is_small_enough_for_a_repository() -> None:
    folder = Path(fastvlm.__file__).parent / "weights" / "mini"
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert sum(sizes) < MOST_BYTES
    assert max(sizes) < MOST_BYTES_A_FILE
    assert all((folder / name).is_file() for name in ("LICENSE", "CREDITS.md", "README.md"))


def test_the_score_of_all_questions_together(right: dict[str, list[bool]]) -> None:
    answers = [one for part in right.values() for one in part]
    assert sum(answers) / len(answers) >= FLOOR


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_the_score_of_each_test(right: dict[str, list[bool]], name: str, floor: float) -> None:
    assert sum(right[name]) / len(right[name]) >= floor
