"""Questions about colored shapes: counts, colors, kinds, presence, sides, sizes, places."""

from __future__ import annotations

from collections import Counter
from random import Random

from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, SHAPE_NAMES
from fastvlm_recipes.demo_data.wording import (
    Turn,
    any_of,
    it_is,
    names_listed,
    place_name,
    plural,
    sentence,
    with_article,
)

HOW_MANY = (
    "How many {} are there?", "How many {} do you see?", "How many {} are in the image?", "Count the {}.",
    "How many {} are in the picture?", "How many {} can you see?", "What is the number of {}?",
)  # fmt: skip
COLOR_OF = (
    "What color is the {}?", "What is the color of the {}?", "Which color is the {}?",
    "What color does the {} have?", "Name the color of the {}.", "The {} is what color?",
)  # fmt: skip
KIND_OF = (
    "What shape is {}?", "Which shape is {}?", "What is the {} shape?", "What {} shape is there?",
    "Which shape is the {} one?",
)  # fmt: skip
ONLY_SHAPE = (
    "What shape is this?", "What shape is it?", "Which shape do you see?", "What shape is in the image?",
    "Name the shape.", "What is the shape?", "What kind of shape is this?",
)  # fmt: skip
DESCRIBE = (
    "What do you see?", "Describe the image.", "What is in the image?", "What is in the picture?",
    "What is this?", "What does the picture show?", "Describe the picture.", "What can you see?",
    "What is shown here?",
)  # fmt: skip
IS_THERE = (
    "Is there {}?", "Is there {} in the image?", "Do you see {}?", "Can you see {}?",
    "Does the image contain {}?", "Is there {} in the picture?",
)  # fmt: skip
WHERE = ("Where is the {}?", "Where in the image is the {}?", "In which part of the picture is the {}?")
BACKGROUND = ("What color is the background?", "What is the background color?", "Which color is the background?")
SIDES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def label(thing: Thing) -> str:
    """Such as "red circle"."""
    return f"{thing.color} {thing.name}"


def shape_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Questions about counts, colors and kinds, and two others, in random order."""
    shapes = scene.shapes()
    first = [*_counts(rng, shapes), *_colors(rng, shapes), *_kinds(rng, shapes)]
    second = [
        *_presence(rng, shapes),
        *_sides(rng, shapes),
        *_places(rng, scene, shapes),
        *_descriptions(rng, shapes),
    ]
    turns = [*first, *rng.sample(second, 2)]
    rng.shuffle(turns)
    return turns


def _counts(rng: Random, shapes: list[Thing]) -> list[Turn]:
    turns = [(any_of(rng, HOW_MANY).format(rng.choice(("shapes", "shapes", "objects"))), str(len(shapes)))]
    by_name, by_color = Counter(s.name for s in shapes), Counter(s.color for s in shapes)
    name = rng.choice(list(by_name) if by_name and rng.random() < 0.85 else SHAPE_NAMES)
    color = rng.choice(list(by_color) if by_color and rng.random() < 0.85 else COLOR_NAMES)
    turns.append((any_of(rng, HOW_MANY).format(plural(name)), str(by_name[name])))
    turns.append((any_of(rng, HOW_MANY).format(f"{color} shapes"), str(by_color[color])))
    if shapes and rng.random() < 0.5:
        one = rng.choice(shapes)
        same = sum(label(s) == label(one) for s in shapes)
        turns.append((any_of(rng, HOW_MANY).format(f"{one.color} {plural(one.name)}"), str(same)))
    return turns


def _colors(rng: Random, shapes: list[Thing]) -> list[Turn]:
    turns: list[Turn] = []
    by_name: dict[str, set[str]] = {}
    for shape in shapes:
        by_name.setdefault(shape.name, set()).add(shape.color)
    for name in rng.sample(sorted(by_name), min(6, len(by_name))):
        if len(by_name[name]) == 1:
            noun = name if sum(s.name == name for s in shapes) == 1 else plural(name)
            question = any_of(rng, COLOR_OF if noun == name else ("What color are the {}?", "Which color are the {}?"))
            turns.append((question.format(noun), it_is(next(iter(by_name[name])))))
    if len(shapes) == 1:
        turns.append((any_of(rng, COLOR_OF).format("shape"), it_is(shapes[0].color)))
        turns.append(
            (
                any_of(rng, ("What color is it?", "What color is this?", "Which color do you see?")),
                it_is(shapes[0].color),
            )
        )
    absent = rng.choice([name for name in SHAPE_NAMES if name not in by_name])
    if rng.random() < 0.35:
        turns.append((any_of(rng, COLOR_OF).format(absent), f"There is no {absent} in the image."))
    return turns


def _kinds(rng: Random, shapes: list[Thing]) -> list[Turn]:
    turns: list[Turn] = []
    by_color = Counter(s.color for s in shapes)
    for shape in shapes:
        if by_color[shape.color] == 1 and len(turns) < 6:
            turns.append((any_of(rng, KIND_OF).format(shape.color), it_is(with_article(shape.name))))
    if len(shapes) == 1:
        turns += [(any_of(rng, ONLY_SHAPE), it_is(with_article(shapes[0].name))) for _ in range(2)]
    sizes = sorted(shapes, key=lambda s: s.size)
    if len(sizes) > 1 and sizes[-1].size > 1.3 * sizes[-2].size:
        turns.append(
            (
                any_of(rng, ("What is the largest shape?", "Which shape is the biggest?")),
                it_is(with_article(sizes[-1].name)),
            )
        )
    if len(sizes) > 1 and sizes[0].size * 1.3 < sizes[1].size:
        turns.append(
            (
                any_of(rng, ("What is the smallest shape?", "Which shape is the smallest?")),
                it_is(with_article(sizes[0].name)),
            )
        )
    return turns


def _presence(rng: Random, shapes: list[Thing]) -> list[Turn]:
    turns: list[Turn] = []
    pairs = {label(s) for s in shapes}
    names, colors = {s.name for s in shapes}, {s.color for s in shapes}
    if shapes:
        one = rng.choice(shapes)
        what = rng.choice((label(one), one.name, f"{one.color} shape"))
        turns.append((any_of(rng, IS_THERE).format(with_article(what)), "Yes"))
    name, color = rng.choice(SHAPE_NAMES), rng.choice(COLOR_NAMES)
    if shapes and rng.random() < 0.5:  # a near miss: a color and a shape that are there, but not together
        name, color = rng.choice(shapes).name, rng.choice(shapes).color
    what = rng.choice((f"{color} {name}", name, f"{color} shape"))
    is_true = {
        f"{color} {name}": f"{color} {name}" in pairs,
        name: name in names,
        f"{color} shape": color in colors,
    }
    turns.append((any_of(rng, IS_THERE).format(with_article(what)), "Yes" if is_true[what] else "No"))
    return turns


def _sides(rng: Random, shapes: list[Thing]) -> list[Turn]:
    """Left, right, above, below of two shapes with different labels."""
    unique = [s for s in shapes if sum(label(s) == label(t) for t in shapes) == 1]
    if len(unique) < 2:
        return []
    first, second = rng.sample(unique, 2)
    turns: list[Turn] = []
    across, down = first.x - second.x, first.y - second.y
    is_level = abs(across) > abs(down)
    if max(abs(across), abs(down)) < 40:
        return []
    side = rng.choice(("to the left of", "to the right of") if is_level else ("above", "below"))
    step = SIDES[side]
    is_true = (across * step[0] + down * step[1]) > 0
    turns.append((any_of(rng, (f"Is the {label(first)} {side} the {label(second)}?",)), "Yes" if is_true else "No"))
    if len(shapes) == 2:
        anchor, other = (second, first) if is_true else (first, second)
        asked = rng.choice((f"What is {side} the {label(anchor)}?", f"Which shape is {side} the {anchor.name}?"))
        if first.name != second.name:
            turns.append(
                (any_of(rng, (asked,)), sentence(with_article(label(other))) if "What" in asked else other.name)
            )
    return turns


def _places(rng: Random, scene: Scene, shapes: list[Thing]) -> list[Turn]:
    turns: list[Turn] = []
    unique = [s for s in shapes if sum(s.name == t.name for t in shapes) == 1]
    if unique:
        one = rng.choice(unique)
        place = place_name(one.x, one.y)
        if place is not None and rng.random() < 0.5:
            turns.append((any_of(rng, WHERE).format(rng.choice((one.name, label(one)))), place))
    if scene.background and rng.random() < 0.5:
        turns.append((any_of(rng, BACKGROUND), it_is(scene.background)))
    return turns


def _descriptions(rng: Random, shapes: list[Thing]) -> list[Turn]:
    """One to three different shapes are listed from the left; more are only counted."""
    question = any_of(rng, DESCRIBE)
    if not shapes:
        return [(question, "There is nothing in the image.")]
    labels = [label(s) for s in sorted(shapes, key=lambda s: s.x)]
    if len(shapes) <= 3 and len(set(labels)) == len(labels):
        return [(question, sentence(names_listed(labels)))]
    if len(set(labels)) == 1:
        return [(question, f"{len(shapes)} {plural(labels[0])}.")]
    if len({s.name for s in shapes}) == 1:
        return [(question, f"{len(shapes)} {plural(shapes[0].name)}.")]
    return [(question, f"{len(shapes)} shapes.")]
