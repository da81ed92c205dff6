"""Where an answer stands in the picture, and the loss that makes the decoder look there. Used in training only.

A small decoder finds out late that "What color is the star?" is answered by the one token that shows a star: after
70,000 pictures it named a lone shape without a mistake and chose among several by chance (every wrong answer was true
of another shape). That takes two steps, and here two attention heads each are shown one of them: to be reminded of the
words that say which thing is meant, and, two layers later, to look at the visual tokens that show it. A third head is
reminded of a "not". What is asked also decides where a reply ends: one letter of a word, or all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from recipes.mini.dense import NUM_TOKENS, TOKEN
from torch import Tensor

from fastvlm.demo_data.scene import Scene, Thing
from fastvlm.demo_data.vocabulary import COLOUR_NAMES, SHAPE_NAMES
from fastvlm.demo_data.wording import ORDINALS, Turn

REMINDED_LAYER, GUIDED_LAYER = 1, 3
GUIDED_HEADS, NEGATED_HEADS = (0, 1), (2,)
REACH = 0.35  # of a thing's size: what lies within it of the centre shows the thing
LEAST_SHARE = 1e-37  # heads are seen to give 1e-36; what lies far below this is not pulled up
TELLING = frozenset((*COLOUR_NAMES, *SHAPE_NAMES))
SIDE_WORDS = frozenset(("left", "right", "above", "below"))
NEGATIONS = frozenset(("not", "no"))
READING = frozenset(("say", "read", "written", "text", "transcribe", "word", "number", "price", "cost"))


@dataclass(frozen=True)
class Look:
    """Before saying `text`, one piece of the answer as tokenised: look at the visual tokens `tokens`.

    And be reminded of the `words` of the question. Either may be empty. Where `text` is empty, the answer ends.
    """

    text: str
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
    if scene.topic in ("letter", "word"):
        return _looks_at_glyphs(scene, question, answer)
    if scene.topic == "shapes":
        return _look_at_shape(scene, question, answer) or _look_for_shape(scene.shapes(), question, answer)
    return []


def plain_words(text: str) -> list[str]:
    """Small letters, American spelling."""
    return re.findall(r"[a-z]+", text.lower().replace("grey", "gray"))


def _look_at_shape(scene: Scene, question: str, answer: str) -> list[Look]:
    """For a colour or a kind: at the one shape whose kind or colour stands in the question, or at the only one."""
    if not answer.startswith("It is "):
        return []
    said = answer.rstrip(".").split()[-1]
    shapes, words = scene.shapes(), set(plain_words(question))
    asked = [s for s in shapes if said in (s.colour, s.name) and (s.colour in words or s.name in words)]
    chosen = asked or (shapes if len(shapes) == 1 else [])
    if len(chosen) == 1 and said in (chosen[0].colour, chosen[0].name):
        return [Look(f" {said}", tokens_of(chosen[0]), frozenset(words & {chosen[0].colour, chosen[0].name}))]
    return []


def _look_for_shape(shapes: Sequence[Thing], question: str, answer: str) -> list[Look]:
    """For yes or no: at all shapes that are what was asked for."""
    words = set(plain_words(question))
    telling = words & TELLING
    if answer not in ("Yes", "No") or not telling or words & SIDE_WORDS:
        return []
    found = [shape for shape in shapes if telling <= {shape.colour, shape.name}]
    seen = {token for shape in found for token in tokens_of(shape)}
    return [Look(answer, tuple(sorted(seen)), frozenset(telling | (words & NEGATIONS)))]


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
    said = [glyph.name for glyph in told]
    return [Look(piece, tokens_of(glyph), telling) for piece, glyph in zip([*said, ""], [*told, told[-1]], strict=True)]


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


def found_in_order(looks: Sequence[Look], answer_pieces: Sequence[str]) -> list[int]:
    """For each look the number of its piece of an answer, as tokenised; empty where they are not found in order."""
    pieces, found = [*answer_pieces, ""], list[int]()
    for look in looks:
        start = found[-1] + 1 if found else 0
        number = next((n for n in range(start, len(pieces)) if pieces[n] == look.text), None)
        if number is None:
            return []
        found.append(number)
    return found


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
