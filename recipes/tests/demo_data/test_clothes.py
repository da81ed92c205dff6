"""Garments come from the part that they should, under their names, where the record says."""

from random import Random

import numpy as np
import pytest

from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.clothes import (
    CELLS,
    CLOTHES,
    PLACES,
    clothes_folder,
    clothes_turns,
    draw_clothes,
    load_clothes,
)
from fastvlm_recipes.demo_data.wording import with_article

pytestmark = pytest.mark.usefixtures("garments")


def test_both_parts_are_read_as_the_files_have_them():
    images, classes = load_clothes("train")
    assert images.shape == (40, 28, 28) and classes.tolist() == list(range(10)) * 4
    images, classes = load_clothes("test")
    assert images.shape == (20, 28, 28)
    assert [int((image.max(0) > 0).sum()) for image in images[:10]] == [1 + 2 * kind for kind in range(10)]


def test_a_piece_is_named_by_its_class_and_lies_where_the_record_says():
    for seed in range(60):
        scene = draw_clothes(Random(seed), "train", 1)
        (piece,) = scene.things
        assert piece.name in CLOTHES and piece.kind == "clothing"
        assert piece.size / 2 <= piece.x <= SIZE - piece.size / 2
        pixels = np.asarray(scene.image.convert("L"), np.int16)
        corner = pixels[:3, :3].mean() if piece.x > SIZE / 2 else pixels[:3, -3:].mean()
        top = round(piece.y - piece.size / 2 + piece.size * 4.5 / 28)  # the first lit row of every class
        middle = pixels[top, round(piece.x)]
        assert abs(middle - corner) > 15 or np.ptp(pixels[:3]) > 10  # seen, on plain grounds


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_piece_stays_in_its_place(count):
    for seed in range(20):
        scene = draw_clothes(Random(seed), "test", count)
        assert len(scene.things) == count
        for piece, (left, top, right, bottom) in zip(scene.things, CELLS[count], strict=True):
            assert left <= piece.x <= right and top <= piece.y <= bottom


def test_answers_name_what_is_there():
    for seed in range(80):
        rng = Random(seed)
        scene = draw_clothes(rng, "train")
        names = [thing.name for thing in scene.things]
        for question, answer in clothes_turns(rng, scene):
            if answer in ("Yes", "No"):
                asked = [name for name in CLOTHES if with_article(name).lower() in question.lower()]
                asked = max(asked, key=len)
                assert (asked in names) == (answer == "Yes")
            for place, name in zip(PLACES.get(len(names), ()), names, strict=False):
                if question.rstrip("?").endswith(place):
                    assert answer.lower() == f"{with_article(name)}.".lower()


def test_without_the_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTVLM_FASHION_MNIST", str(tmp_path))
    load_clothes.cache_clear()
    assert clothes_folder() is None
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        draw_clothes(Random(0), "train")
