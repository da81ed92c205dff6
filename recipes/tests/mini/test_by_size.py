"""Drawings of the evaluation by size: inside the image, reproducible, not by the mini's own drawer; its tables."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvlm.training.recipe import Recipe
from fastvlm_recipes.demo_data.drawing_plan import parse_mix
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS
from fastvlm_recipes.mini import plain_drawings
from fastvlm_recipes.mini.evaluate_by_size import OWN_FONT, as_tables, count_cells, main, word_cells
from fastvlm_recipes.mini.plain_drawings import (
    COLORS,
    SIDE_PX,
    WordCell,
    capital_height_px,
    draw_count,
    draw_word_image,
    fitting_share,
    load_font,
)


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([20, 60, 110]), st.sampled_from([(3, 4), (5, 6)]))
def test_a_word_lies_inside_and_is_held_out(seed, size_px, lengths):
    drawing = draw_word_image(Random(seed), WordCell(lengths, size_px), load_font(None, size_px))
    assert drawing.answer.lower() in HELD_OUT_WORDS and len(drawing.answer) in lengths
    image = drawing.image
    assert len(image.getcolors(SIDE_PX**2)) > 1
    grounds = {ground for ground, _ in COLORS}
    image.paste(image.getpixel((0, 0)), (1, 1, SIDE_PX - 1, SIDE_PX - 1))
    assert image.getcolors() == [(SIDE_PX**2, image.getpixel((0, 0)))] and image.getpixel((0, 0)) in grounds


def test_the_same_seed_draws_the_same():
    font = load_font(None, 40)
    first, again = (draw_word_image(Random(7), WordCell((3, 4), 40), font) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes() and first.answer == again.answer


def test_letters_have_the_stated_height():
    assert [capital_height_px(load_font(None, size)) for size in (20, 40, 110)] == [14, 28, 76]
    assert fitting_share(Random(0), WordCell((7, 8), 150), load_font(None, 150)) < 0.5
    with pytest.raises(ValueError, match="no word of"):
        draw_word_image(Random(0), WordCell((7, 8), 300), load_font(None, 300))


@pytest.mark.parametrize("count", range(1, 7))
def test_as_many_shapes_are_drawn_as_are_counted(count):
    for seed in range(4):
        drawing = draw_count(Random(seed), count)
        ground = drawing.image.getpixel((0, 0))
        columns, rows = plain_drawings.COLUMNS, plain_drawings.ROWS
        centers = [
            (round(SIDE_PX * (column + 0.5) / columns), round(SIDE_PX * (row + 0.5) / rows))
            for row in range(rows)
            for column in range(columns)
        ]
        filled = [drawing.image.getpixel(center) != ground for center in centers]
        assert filled == [True] * count + [False] * (6 - count) and drawing.answer == str(count)


def test_nothing_of_the_minis_drawer_draws():
    source = Path(plain_drawings.__file__).read_text()
    used = [line for line in source.splitlines() if "fastvlm" in line and line.startswith(("from", "import"))]
    assert used == ["from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS"]


def test_tables_tell_share_interval_and_what_does_not_fit(capsys):
    cells = word_cells(lambda drawings: [one.answer.upper() for one in drawings], OWN_FONT, [None], (110, 150), 4, 0)
    cells += count_cells(lambda drawings: ["3"] * len(drawings), 5, 0)
    text = as_tables(cells)
    assert "| 110 px (capitals 76 px) | 100 % (51-100) | 100 % (51-100) | 100 % (51-100) |" in text
    assert text.count("does not fit") == 1 and "20 of 20 right; 4 images a cell." in text
    assert "| right | 0 % (0-43) | 0 % (0-43) | 100 % (57-100) | 0 % (0-43) |" in text
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == len(cells) and told[-1]["wrong"][0] == ["6", "3"]


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--sizes", "0"], ["--fonts", "nowhere.ttf"], ["--bits", "7"]])
def test_wrong_arguments_are_told_before_the_model_is_opened(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "by the height of the letters" in capsys.readouterr().out


def test_the_next_edition_is_a_recipe_with_a_mix_that_can_be_drawn():
    text = (Path(__file__).parents[2] / "mini" / "next_edition.yaml").read_text()
    mix = parse_mix(text.split("--mix ")[1].split()[0])
    assert sum(mix.values()) == 100 and {"small", "plain"} <= set(mix)
    import yaml

    assert Recipe.model_validate({**yaml.safe_load(text), "data": ["somewhere"]}).image_size == 512
