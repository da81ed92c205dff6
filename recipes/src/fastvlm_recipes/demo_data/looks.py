"""Attention targets: the objects and words of the question that the text at a character of an answer is about.

A small decoder learns late that "What color is the star?" is answered by the token that shows a star: after 70,000
images it named a single shape without a mistake and chose among several at random (every wrong answer was true of
another shape). So the records contain these targets, and `grounding` in a recipe trains on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, GLYPHS, SHAPE_NAMES
from fastvlm_recipes.demo_data.wording import ORDINALS, REFUSAL, Turn

TELLING = frozenset((*COLOR_NAMES, *SHAPE_NAMES))
SIDE_WORDS = frozenset(("left", "right", "above", "below"))
NEGATIONS = frozenset(("not", "no"))
READING = frozenset(("say", "read", "written", "text", "transcribe", "word", "number", "price", "cost"))
# Words that occur in questions of every kind; the other words say what is asked for.
ASKING = frozenset((
    "a", "an", "and", "are", "as", "be", "called", "can", "count", "do", "does", "from", "give", "how", "image", "in",
    "is", "it", "many", "much", "name", "of", "on", "one", "picture", "return", "see", "shown", "that", "the", "there",
    "this", "to", "was", "were", "what", "where", "which", "who", "write", "you",
))  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Before the answer's character `start` (its length: before the end), attend to `things`.

    And to the `words` of the question, in small letters and American spelling. Either may be empty.
    """

    start: int
    things: tuple[Thing, ...] = ()
    words: frozenset[str] = frozenset()


def looks_of(scene: Scene, turn: Turn) -> list[Look]:
    """The targets of an answer in their order; empty if they are unknown."""
    question, answer = turn
    if answer.startswith(REFUSAL):
        return [Look(0, (), _telling(question))]
    if scene.topic in ("letter", "word"):
        return _looks_at_glyphs(scene, question, answer)
    if scene.topic == "shapes":
        return _looks_at_shape(scene, question, answer) or _look_for_shape(scene.shapes(), question, answer)
    if scene.topic in ("emoji", "clothes"):
        return _looks_at_named(scene.things, question, answer)
    return _looks_at_lines(scene, question, answer)


def plain_words(text: str) -> list[str]:
    """Small letters, American spelling."""
    return re.findall(r"[a-z]+", text.lower().replace("grey", "gray"))


def _telling(question: str) -> frozenset[str]:
    """The words that name the subject of the question."""
    return frozenset(plain_words(question)) - ASKING


def _looks_at_shape(scene: Scene, question: str, answer: str) -> list[Look]:
    """For a color, a kind or a place: the one shape whose kind or color stands in the question, or the only one.

    The first target is before the first word, because that differs if nothing fits ("There is no star in the image.").
    """
    shapes, words = scene.shapes(), set(plain_words(question))
    asked = [shape for shape in shapes if shape.color in words or shape.name in words]
    said = answer.rstrip(".").split()[-1] if answer.startswith("It is ") else ""
    if said:
        asked = [shape for shape in asked if said in (shape.color, shape.name)] or shapes
    elif "where" not in words:
        return []
    if len(asked) != 1 or (said and said not in (asked[0].color, asked[0].name)):
        return []
    telling = frozenset(words & {asked[0].color, asked[0].name})
    starts = (0, answer.rindex(said)) if said else (0,)
    return [Look(start, (asked[0],), telling) for start in starts]


def _look_for_shape(shapes: Sequence[Thing], question: str, answer: str) -> list[Look]:
    """For yes or no: all shapes that fit the question."""
    words = set(plain_words(question))
    telling = words & TELLING
    if answer not in ("Yes", "No") or not telling or words & SIDE_WORDS:
        return []
    found = [shape for shape in shapes if telling <= {shape.color, shape.name}]
    return [Look(0, tuple(found), frozenset(telling | (words & NEGATIONS)))]


def reminder_of(turn: Turn) -> list[Look]:
    """For yes or no about an image without a record: the words that name the subject of the question."""
    return _look_for_shape((), *turn)


def _looks_at_glyphs(scene: Scene, question: str, answer: str) -> list[Look]:
    """Letter by letter for the whole text, or the letter asked for by its position; the last one again at the end."""
    glyphs, text = [thing for thing in scene.things if thing.kind == "glyph"], scene.lines[0].text
    if len(glyphs) != len(text):
        return []
    words = set(plain_words(question))
    places = {**{word: number for number, word in enumerate(ORDINALS)}, "last": len(text) - 1}
    asked = [word for word in words & set(places) if places[word] < len(text) and answer == text[places[word]]]
    if asked:
        shown, telling = [glyphs[places[asked[0]]]], frozenset(asked)
    elif answer == text:
        shown, telling = glyphs, frozenset(words & READING)
    else:
        return []
    return [Look(start, (glyph,), telling) for start, glyph in enumerate([*shown, shown[-1]])]


def _looks_at_named(things: Sequence[Thing], question: str, answer: str) -> list[Look]:
    """Each thing before its name."""
    telling, looks = _telling(question), []
    for name in dict.fromkeys(thing.name for thing in things):
        named = re.search(rf"(?<![\w-]){re.escape(name)}\b", answer)
        if named:
            looks.append(Look(named.start(), tuple(t for t in things if t.name == name), telling))
    return looks


def _looks_at_lines(scene: Scene, question: str, answer: str) -> list[Look]:
    """Each character of the answer that equals a line, or a part of one between spaces."""
    words = plain_words(question)
    if answer in ("Yes", "No") or words[:2] == ["how", "many"] or "count" in words:
        return []
    lines, telling = _written(scene), _telling(question)
    looks: list[Look] = []
    for start, part in _parts(answer, is_grid=scene.topic == "grid"):
        shown = _shown(part, lines)
        looks += [Look(start + number, tuple(glyphs), telling) for number, glyphs in shown.items()]
        if shown:
            looks.append(Look(start + len(part), looks[-1].things, telling))
    return looks


def _parts(answer: str, *, is_grid: bool) -> list[tuple[int, str]]:
    """The parts of an answer with their positions: the values of a JSON object, the words of a grid, or its lines."""
    if answer.startswith("{"):
        values = [json.dumps(value, ensure_ascii=False) for value in json.loads(answer).values()]
        return [(answer.index(value) + 1, value[1:-1]) for value in values]
    return [(found.start(), found[0]) for found in re.finditer(r"\S+" if is_grid else r"[^\n]+", answer)]


def _written(scene: Scene) -> list[tuple[str, dict[int, Thing]]]:
    """Each line's text with its glyphs by their place in it, as `demo_data.lettering.write` records them."""
    glyphs = iter([thing for thing in scene.things if thing.kind == "glyph"])
    return [
        (line.text, {place: next(glyphs) for place, char in enumerate(line.text) if char in GLYPHS})
        for line in scene.lines
    ]


def _shown(part: str, lines: Sequence[tuple[str, dict[int, Thing]]]) -> dict[int, list[Thing]]:
    """The glyphs that show each character of `part`: in lines that equal it, or else in lines that contain it."""
    alone = [(0, glyphs) for text, glyphs in lines if text == part]
    within = [
        (found.start(), glyphs)
        for text, glyphs in lines
        if (found := re.search(rf"(?<!\S){re.escape(part)}(?!\S)", text))
    ]
    shown: dict[int, list[Thing]] = {}
    for begin, glyphs in alone or within:
        for place in range(len(part)):
            if begin + place in glyphs:
                shown.setdefault(place, []).append(glyphs[begin + place])
    return dict(sorted(shown.items()))
