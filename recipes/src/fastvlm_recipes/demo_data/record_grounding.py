"""Grounding columns of a record: the objects' boxes in the image, and the objects that an answer is about.

The columns `objects` and `looks`, as docs/training_data.md has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastvlm_recipes.demo_data.clothes import CLOTHES
from fastvlm_recipes.demo_data.looks import NEGATIONS, Look, looks_of, plain_words, reminder_of
from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, EMOJI_NAMES, GLYPHS, SHAPE_NAMES
from fastvlm_recipes.demo_data.wording import Turn


def known_names() -> dict[str, list[str]]:
    """Every name and color that an object may have: the content of names.json."""
    emoji = [_emoji(name) for name in EMOJI_NAMES]
    return {"objects": [*GLYPHS, *SHAPE_NAMES, *CLOTHES, *emoji], "colours": [*COLOR_NAMES]}


def record_grounding(scene: Scene, turns: Sequence[Turn]) -> dict[str, object]:
    """The columns of one record; for an image of another data set only the words of the question."""
    if scene.topic == "easy":
        return {"looks": _looks(scene, turns, [reminder_of(turn) for turn in turns])}
    objects = [_object(thing) for thing in scene.things]
    return {"objects": objects, "looks": _looks(scene, turns, [looks_of(scene, turn) for turn in turns])}


def _object(thing: Thing) -> dict[str, object]:
    half = thing.size / 2
    box = [round(edge, 1) for edge in (thing.x - half, thing.y - half, thing.x + half, thing.y + half)]
    entry: dict[str, object] = {"name": _emoji(thing.name) if thing.kind == "emoji" else thing.name, "box": box}
    return {**entry, "colour": thing.color} if thing.color else entry


def _emoji(name: str) -> str:
    """A drawn star and the star emoji have different names."""
    return f"{name} emoji"


def _looks(scene: Scene, turns: Sequence[Turn], looks: Sequence[Sequence[Look]]) -> list[dict[str, object]]:
    places = {thing: number for number, thing in enumerate(scene.things)}
    entries: list[dict[str, object]] = []
    for reply, ((question, _), of_turn) in enumerate(zip(turns, looks, strict=True)):
        for look in of_turn:
            things = sorted({places[thing] for thing in look.things})
            words = _as_asked(question, look.words - NEGATIONS)
            if things or words:
                entries.append({"reply": reply, "at": look.start, "objects": things, "words": words})
    return entries


def _as_asked(question: str, words: frozenset[str]) -> list[str]:
    """The question's own spellings of `words`."""
    spelled = {word for word in re.findall(r"\w+", question.lower()) if words.intersection(plain_words(word))}
    return sorted(spelled)
