"""Questions that cannot be answered from the image, and answerable ones in the same words."""

from __future__ import annotations

from collections import Counter
from random import Random

from fastvlm_recipes.demo_data.chart_questions import LARGEST, VALUE_OF, largest
from fastvlm_recipes.demo_data.receipt_questions import DATE, PRICE_OF, SHOP, TOTAL
from fastvlm_recipes.demo_data.receipts import GOODS
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.shape_questions import COLOR_OF, KIND_OF, WHERE
from fastvlm_recipes.demo_data.text_questions import READ
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, SHAPE_NAMES
from fastvlm_recipes.demo_data.wording import Turn, any_of, it_is, place_name, plural, with_article

READ_WHAT_IS_NOT_THERE = (
    "What does it say?",
    "Read the text.",
    "What is written here?",
    "What letter is this?",
    "What word is this?",
)
NOT_A_BAR = ("rectangle", "square")  # a bar of a chart looks like these


def refusal(noun: str) -> str:
    """The mini's answer to a question about a `noun` that is not there."""
    return f"There is no {noun} in the image."


def no_text_turn(rng: Random) -> Turn:
    """Asked to read where nothing is written."""
    return any_of(rng, READ_WHAT_IS_NOT_THERE), refusal("text")


def no_shape_turn(rng: Random) -> Turn:
    """Asked for shapes where there are none."""
    shape, color = rng.choice(SHAPE_NAMES), rng.choice(COLOR_NAMES)
    question, answer = rng.choice(
        (
            (f"What color is the {shape}?", refusal(shape)),
            (f"How many {plural(shape)} are there?", "0"),
            (f"Is there {with_article(f'{color} {shape}')}?", "No"),
            ("What shape is this?", refusal("shape")),
        )
    )
    return any_of(rng, (question,)), answer


def _no_receipt(rng: Random) -> Turn:
    wordings, noun = rng.choice(((TOTAL[:3], "total"), (DATE[:2], "date"), (SHOP[:1], "shop")))
    return any_of(rng, wordings), refusal(noun)


def _no_chart(rng: Random) -> Turn:
    return any_of(rng, LARGEST[:4]), refusal("bar")


def false_premise(rng: Random, scene: Scene) -> Turn:
    """A question about something that is not in the image; the answer says so."""
    if scene.topic == "shapes":
        color, shape = absent_color(rng, scene), absent_shape(rng, scene)
        return rng.choice((color, shape, shape, no_text_turn(rng), rng.choice((_no_receipt, _no_chart))(rng)))
    if scene.receipt is not None:
        names = [name.casefold() for name, _ in scene.receipt.items]
        absent = rng.choice([name for name in GOODS if name not in names])
        asked = any_of(rng, PRICE_OF).format(absent), refusal(absent)
        return rng.choice((asked, asked, _no_chart(rng)))
    if scene.chart is not None:
        return _absent_from_chart(rng, scene)
    if scene.topic in ("emoji", "clothes"):
        return rng.choice((no_text_turn(rng), no_text_turn(rng), _no_receipt(rng), _no_chart(rng), _shape_asked(rng)))
    return rng.choice((_shape_asked(rng), _shape_asked(rng), _no_receipt(rng), _no_chart(rng)))


def _shape_asked(rng: Random, names: tuple[str, ...] = SHAPE_NAMES) -> Turn:
    shape = rng.choice(names)
    return any_of(rng, (*COLOR_OF, *WHERE)).format(shape), refusal(shape)


def _absent_from_chart(rng: Random, scene: Scene) -> Turn:
    chart = scene.chart
    labels = [] if chart is None else [label.casefold() for label in chart.labels]
    absent = rng.choice([letter for letter in "ABCDEFGHIKLMNP" if letter.casefold() not in labels])
    asked = any_of(rng, VALUE_OF).format(absent), refusal(absent)
    names = tuple(name for name in SHAPE_NAMES if name not in NOT_A_BAR)
    return rng.choice((asked, _shape_asked(rng, names), _no_receipt(rng)))


def absent_color(rng: Random, scene: Scene) -> Turn:
    """Such as "What shape is blue?" where nothing is blue."""
    colors = {shape.color for shape in scene.shapes()} | {scene.background}
    absent = rng.choice([color for color in COLOR_NAMES if color not in colors])
    return any_of(rng, KIND_OF).format(absent), refusal(f"{absent} shape")


def absent_shape(rng: Random, scene: Scene) -> Turn:
    """Such as "What color is the star?" where there is no star."""
    names = {shape.name for shape in scene.shapes()}
    absent = rng.choice([name for name in SHAPE_NAMES if name not in names])
    return any_of(rng, (*COLOR_OF, *WHERE)).format(absent), refusal(absent)


def twin(rng: Random, scene: Scene) -> Turn | None:
    """A question in the words of `false_premise` that can be answered; None if there is none."""
    if scene.topic == "shapes":
        return _shape_twin(rng, scene)
    if scene.receipt is not None:
        name, price = rng.choice(scene.receipt.items)
        return any_of(rng, PRICE_OF).format(name.lower()), price
    if scene.chart is not None:
        return any_of(rng, LARGEST[:4]), largest(scene.chart)
    return (any_of(rng, READ), scene.lines[0].text) if len(scene.lines) == 1 else None


def _shape_twin(rng: Random, scene: Scene) -> Turn | None:
    names = Counter(shape.name for shape in scene.shapes())
    colors = Counter(shape.color for shape in scene.shapes())
    turns: list[Turn] = []
    for shape in scene.shapes():
        if colors[shape.color] == 1:
            turns.append((any_of(rng, KIND_OF).format(shape.color), it_is(with_article(shape.name))))
        if names[shape.name] == 1:
            turns.append((any_of(rng, COLOR_OF).format(shape.name), it_is(shape.color)))
            place = place_name(shape.x, shape.y)
            turns += [] if place is None else [(any_of(rng, WHERE).format(shape.name), place)]
    return rng.choice(turns) if turns else None
