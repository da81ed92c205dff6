"""The recipe's tests as files are the recipe's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import ImageChops

import fastvlm
from fastvlm.evaluation.layouts.plain import mini_place, read_plain
from fastvlm_recipes.mini import export
from fastvlm_recipes.mini.benchmark import make_items


def test_what_is_written_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["export", "--out", str(out), "--tests", "shapes", "counts_1_6", "--n", "3"])
    export.main()
    assert "6 questions" in capsys.readouterr().out
    questions = read_plain(mini_place(out)).questions
    items = make_items("shapes", 3) + make_items("counts_1_6", 3)
    assert [question.test for question in questions] == ["shapes"] * 3 + ["counts_1_6"] * 3
    for question, item in zip(questions, items, strict=True):
        assert (question.text, question.answers) == (item.question, item.answers)
        image = fastvlm.open_image(question.images[0])
        assert ImageChops.difference(image, item.image.convert("RGB")).getbbox() is None
