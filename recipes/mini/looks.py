"""Where an answer stands in the picture, and the loss that makes the decoder look there. Used in training only.

A small decoder finds out late that "What color is the star?" is answered by the one token that shows a star: after
70,000 pictures it named a lone shape without a mistake and chose among several by chance (every wrong answer was true
of another shape). That takes two steps, and here two attention heads each are shown one of them: to be reminded of the
words that say which thing is meant, and, two layers later, to look at the visual tokens that show it. A third head is
reminded of a "not". What is asked also decides where a reply ends: one letter of a word, or all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from recipes.mini.dense import NUM_TOKENS, TOKEN
from torch import Tensor

from fastvlm.demo_data.scene import Scene, Thing
from fastvlm.demo_data.vocabulary import COLOUR_NAMES, GLYPHS, SHAPE_NAMES
from fastvlm.demo_data.wording import ORDINALS, Turn
from fastvlm.evaluation.scores import is_refusal

REMINDED_LAYER, GUIDED_LAYER = 1, 3
GUIDED_HEADS, NEGATED_HEADS = (0, 1), (2,)
REACH = 0.35  # of a thing's size: what lies within it of the centre shows the thing
LEAST_SHARE = 1e-37  # heads are seen to give 1e-36; what lies far below this is not pulled up
TELLING = frozenset((*COLOUR_NAMES, *SHAPE_NAMES))
SIDE_WORDS = frozenset(("left", "right", "above", "below"))
NEGATIONS = frozenset(("not", "no"))
READING = frozenset(("say", "read", "written", "text", "transcribe", "word", "number", "price", "cost"))
# What questions of every kind are made of; the other words tell what is asked for.
ASKING = frozenset((
    "a", "an", "and", "are", "as", "be", "called", "can", "count", "do", "does", "from", "give", "how", "image", "in",
    "is", "it", "many", "much", "name", "of", "on", "one", "picture", "return", "see", "shown", "that", "the", "there",
    "this", "to", "was", "were", "what", "where", "which", "who", "write", "you",
))  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Before saying what stands at `start` in the answer (its length: the end), look at the visual tokens `tokens`.

    And be reminded of the `words` of the question. Either may be empty.
    """

    start: int
    tokens: tuple[int, ...] = ()
    words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Gaze:
    """In decoder layer `layer` the token at `position` attends, with `heads`, to the tokens at `seen`."""

    layer: int
    position: int
    seen: tuple[int, ...]
    heads: tuple[int, ...] = GUIDED_HEADS


def looks_of(scene: Scene, turn: Turn) -> list[Look]:
    """What to look at for the words of the answer, in their order; empty where that cannot be said."""
    question, answer = turn
    if is_refusal(answer):
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
    """The words that tell what is asked for."""
    return frozenset(plain_words(question)) - ASKING


def _looks_at_shape(scene: Scene, question: str, answer: str) -> list[Look]:
    """For a colour, a kind or a place: at the one shape whose kind or colour stands in the question, or the only one.

    From the first word on, which is another where nothing fits ("There is no star in the image.").
    """
    shapes, words = scene.shapes(), set(plain_words(question))
    asked = [shape for shape in shapes if shape.colour in words or shape.name in words]
    said = answer.rstrip(".").split()[-1] if answer.startswith("It is ") else ""
    if said:
        asked = [shape for shape in asked if said in (shape.colour, shape.name)] or shapes
    elif "where" not in words:
        return []
    if len(asked) != 1 or (said and said not in (asked[0].colour, asked[0].name)):
        return []
    tokens, telling = tokens_of(asked[0]), frozenset(words & {asked[0].colour, asked[0].name})
    starts = (0, answer.rindex(said)) if said else (0,)
    return [Look(start, tokens, telling) for start in starts]


def _look_for_shape(shapes: Sequence[Thing], question: str, answer: str) -> list[Look]:
    """For yes or no: at all shapes that are what was asked for."""
    words = set(plain_words(question))
    telling = words & TELLING
    if answer not in ("Yes", "No") or not telling or words & SIDE_WORDS:
        return []
    found = [shape for shape in shapes if telling <= {shape.colour, shape.name}]
    return [Look(0, _tokens_of_all(found), frozenset(telling | (words & NEGATIONS)))]


def reminder_of(turn: Turn) -> list[Look]:
    """For yes or no about a picture of which nothing more is known: the words that tell what is asked for."""
    return _look_for_shape((), *turn)


def _looks_at_glyphs(scene: Scene, question: str, answer: str) -> list[Look]:
    """Letter by letter for the whole text, or the one letter asked for by its place; at the end the last again."""
    glyphs, text = [thing for thing in scene.things if thing.kind == "glyph"], scene.lines[0].text
    if len(glyphs) != len(text):
        return []
    words = set(plain_words(question))
    places = {**{word: number for number, word in enumerate(ORDINALS)}, "last": len(text) - 1}
    asked = [word for word in words & set(places) if places[word] < len(text) and answer == text[places[word]]]
    if asked:
        told, telling = [glyphs[places[asked[0]]]], frozenset(asked)
    elif answer == text:
        told, telling = glyphs, frozenset(words & READING)
    else:
        return []
    return [Look(start, tokens_of(glyph), telling) for start, glyph in enumerate([*told, told[-1]])]


def _looks_at_named(things: Sequence[Thing], question: str, answer: str) -> list[Look]:
    """At each thing before its name."""
    telling, looks = _telling(question), []
    for name in dict.fromkeys(thing.name for thing in things):
        named = re.search(rf"(?<![\w-]){re.escape(name)}\b", answer)
        if named:
            looks.append(Look(named.start(), _tokens_of_all([t for t in things if t.name == name]), telling))
    return looks


def _looks_at_lines(scene: Scene, question: str, answer: str) -> list[Look]:
    """At each character of what the answer reads, as long as a line, or a run in one, says the same."""
    words = plain_words(question)
    if answer in ("Yes", "No") or words[:2] == ["how", "many"] or "count" in words:
        return []
    lines, telling = _written(scene), _telling(question)
    looks: list[Look] = []
    for start, part in _parts(answer, is_grid=scene.topic == "grid"):
        shown = _shown(part, lines)
        looks += [Look(start + number, _tokens_of_all(glyphs), telling) for number, glyphs in shown.items()]
        if shown:
            looks.append(Look(start + len(part), looks[-1].tokens, telling))
    return looks


def _parts(answer: str, *, is_grid: bool) -> list[tuple[int, str]]:
    """What an answer reads, with where it begins: the values of a JSON object, the words of a grid, or its lines."""
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
    """The glyphs that show each character of `part`: in lines that say just that, or else in lines that hold it."""
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


def _tokens_of_all(things: Sequence[Thing]) -> tuple[int, ...]:
    return tuple(sorted({token for thing in things for token in tokens_of(thing)}))


def tokens_of(thing: Thing) -> tuple[int, ...]:
    """Numbers, row by row, of the visual tokens that show the middle of a thing."""
    reach = REACH * thing.size

    def places(centre: float) -> range:
        first, last = (int((centre + side) // TOKEN) for side in (-reach, reach))
        return range(max(0, min(first, NUM_TOKENS - 1)), max(0, min(last, NUM_TOKENS - 1)) + 1)

    return tuple(row * NUM_TOKENS + column for row in places(thing.y) for column in places(thing.x))


def pieces_of(words: frozenset[str], question_pieces: Sequence[str]) -> list[int]:
    """Numbers of the pieces of a question, as tokenised, that spell one of `words`."""
    letters = [number for number, piece in enumerate(question_pieces) for _ in piece]
    found: set[int] = set()
    for match in re.finditer(r"[a-z]+", "".join(question_pieces).lower()):
        if words & {*plain_words(match[0])}:
            found.update(letters[match.start() : match.end()])
    return sorted(found)


def by_piece(looks: Sequence[Look], answer: str, answer_pieces: Sequence[str]) -> dict[int, Look]:
    """For each piece of an answer, as tokenised, what is looked at before it; the end is one more piece.

    Nothing where the pieces do not spell the answer (characters of several bytes that are several tokens).
    """
    if "".join(answer_pieces) != answer:
        return {}
    owner = [number for number, piece in enumerate(answer_pieces) for _ in piece]
    joined: dict[int, Look] = {}
    for look in looks:
        number = owner[look.start] if look.start < len(answer) else len(answer_pieces)
        other = joined.get(number, Look(look.start))
        joined[number] = Look(other.start, tuple(sorted({*other.tokens, *look.tokens})), other.words | look.words)
    return joined


def look_loss(attentions: Sequence[Tensor], gazes: Sequence[Sequence[Gaze]]) -> Tensor:
    """-log of the share of attention where it should be, over all gazes of a batch, layer by layer.

    attentions: of each decoder layer (B, H, T, T); gazes: those of each sample.
    """
    total = attentions[0].new_zeros(())
    kinds = {(gaze.layer, gaze.heads) for sample in gazes for gaze in sample}
    for layer, heads in sorted(kinds):
        rows = [(b, g) for b, sample in enumerate(gazes) for g in sample if (g.layer, g.heads) == (layer, heads)]
        samples, positions = (
            torch.tensor(numbers) for numbers in zip(*((b, g.position) for b, g in rows), strict=True)
        )
        wanted = torch.zeros(len(rows), 1, attentions[layer].shape[-1])
        for number, (_, gaze) in enumerate(rows):
            wanted[number, 0, list(gaze.seen)] = 1.0
        looked = attentions[layer][:, list(heads)][samples, :, positions].float()
        total = total - ((looked * wanted).sum(-1) + LEAST_SHARE).log().mean()
    return total
