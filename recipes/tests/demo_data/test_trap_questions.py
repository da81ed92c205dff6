"""What cannot be answered is really not there, and its twin is."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data.charts import draw_chart
from fastvlm_recipes.demo_data.receipts import draw_receipt
from fastvlm_recipes.demo_data.shapes import draw_shapes
from fastvlm_recipes.demo_data.text import draw_word
from fastvlm_recipes.demo_data.trap_questions import (
    absent_color,
    absent_shape,
    false_premise,
    no_text_turn,
    refusal,
    twin,
)
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, SHAPE_NAMES

DRAWN = {
    "shapes": draw_shapes,
    "receipt": lambda rng: draw_receipt(rng, "train"),
    "chart": lambda rng: draw_chart(rng, "train"),
    "word": lambda rng: draw_word(rng, "train", "HILT"),
}


@pytest.mark.parametrize("kind", DRAWN)
@given(seed=st.integers(0, 2**32))
def test_a_false_premise_names_nothing_that_is_there(kind, seed):
    rng = Random(seed)
    scene = DRAWN[kind](rng)
    _, answer = false_premise(rng, scene)
    assert answer.startswith("There is no ") and answer.endswith(" in the image.")
    missing = answer.removeprefix("There is no ").removesuffix(" in the image.")
    there = {shape.name for shape in scene.shapes()} | {f"{shape.color} shape" for shape in scene.shapes()}
    there |= {name.casefold() for name, _ in scene.receipt.items} if scene.receipt else set()
    there |= set(scene.chart.labels) if scene.chart else set()
    assert missing not in there
    assert not (missing in ("total", "date", "shop") and scene.receipt)
    assert not (missing == "bar" and scene.chart) and not (missing == "text" and scene.lines)


@given(seed=st.integers(0, 2**32))
def test_absent_colors_and_shapes_are_asked_for_by_name(seed):
    rng = Random(seed)
    scene = draw_shapes(rng, 3)
    question, answer = absent_color(rng, scene)
    color = answer.split()[3]
    assert color in COLOR_NAMES and color in question.lower().replace("grey", "gray")
    question, answer = absent_shape(rng, scene)
    assert answer.split()[3] in SHAPE_NAMES and answer.split()[3] in question.lower()


@given(seed=st.integers(0, 2**32))
def test_a_twin_is_true_of_the_shapes(seed):
    rng = Random(seed)
    scene = draw_shapes(rng, rng.randint(1, 5))
    asked = twin(rng, scene)
    if asked is None:
        return
    question, answer = asked
    said = answer.removeprefix("It is ").rstrip(".").split()[-1]
    words = question.lower().replace("grey", "gray").rstrip("?.").split()
    if said in SHAPE_NAMES:
        color = next(word for word in words if word in COLOR_NAMES)
        assert [shape.name for shape in scene.shapes() if shape.color == color] == [said]
    elif said in COLOR_NAMES:
        name = next(word for word in words if word in SHAPE_NAMES)
        assert [shape.color for shape in scene.shapes() if shape.name == name] == [said]
    else:
        assert said in ("left", "right", "top", "bottom", "center")


def test_twins_of_other_images():
    rng = Random(1)
    receipt = draw_receipt(rng, "train")
    assert twin(rng, receipt)[1] in [price for _, price in receipt.receipt.items]
    chart = draw_chart(rng, "train")
    assert twin(rng, chart)[1] in chart.chart.labels
    assert twin(rng, draw_word(rng, "train", "HILT"))[1] == "HILT"
    assert twin(rng, draw_shapes(rng, 0)) is None


def test_the_wording_of_refusals():
    assert refusal("blue shape") == "There is no blue shape in the image."
    assert no_text_turn(Random(0))[1] == refusal("text")
