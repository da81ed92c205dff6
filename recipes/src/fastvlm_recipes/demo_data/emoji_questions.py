"""Questions about emoji: names, number, presence, place."""

from __future__ import annotations

from random import Random

from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, EMOJI_NAMES
from fastvlm_recipes.demo_data.wording import Turn, any_of, names_listed, place_name, sentence, with_article

NAMING = (
    "What is this?", "What do you see?", "What is in the image?", "What is in the picture?",
    "What is shown here?", "Describe the image.", "What object is this?", "Name the object.",
    "What does the picture show?", "What can you see?",
)  # fmt: skip
LISTING = (
    "What do you see?", "Describe the image.", "What is in the image?", "What is in the picture?",
    "List the objects.", "What objects are there?", "What can you see?", "Name everything in the picture.",
)  # fmt: skip
HOW_MANY_OBJECTS = ("How many objects are there?", "How many things are in the image?", "How many objects do you see?")
IS_THERE = ("Is there {}?", "Is there {} in the image?", "Do you see {}?", "Can you see {}?")


def emoji_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Naming, listing, counting, presence, place, and colors of absent emoji."""
    things = scene.emoji()
    names = [thing.name for thing in things]
    if len(set(names)) == 1:
        turns = [(any_of(rng, NAMING), sentence(with_article(names[0]))) for _ in range(2)]
        place = place_name(things[0].x, things[0].y)
        if place is not None and len(things) == 1:
            turns.append((any_of(rng, (f"Where is the {names[0]}?", "Where is the object?")), place))
    else:
        listed = list(dict.fromkeys(thing.name for thing in sorted(things, key=lambda thing: thing.x)))
        turns = [(any_of(rng, LISTING), sentence(names_listed(listed)))]
        left, right = min(things, key=lambda t: t.x), max(things, key=lambda t: t.x)
        turns.append(
            (any_of(rng, ("What is on the left?", "What is furthest left?")), sentence(with_article(left.name)))
        )
        turns.append(
            (any_of(rng, ("What is on the right?", "What is furthest right?")), sentence(with_article(right.name)))
        )
    extra: list[Turn] = [(any_of(rng, HOW_MANY_OBJECTS), str(len(things)))]
    present, absent = rng.choice(names), rng.choice([name for name in EMOJI_NAMES if name not in names])
    extra.append((any_of(rng, IS_THERE).format(with_article(present)), "Yes"))
    extra.append((any_of(rng, IS_THERE).format(with_article(absent)), "No"))
    if absent not in COLOR_NAMES and rng.random() < 0.4:
        extra.append((any_of(rng, (f"What color is the {absent}?",)), f"There is no {absent} in the image."))
    return [*turns, *rng.sample(extra, 2)]
