"""Where an answer stands in the picture as visual tokens, and the loss that makes the decoder look there.

What is looked at, `fastvlm.demo_data.looks` says. Two attention heads each are shown one of two steps: to be reminded
of the words that say which thing is meant, and, two layers later, to look at the visual tokens that show it. A third
head is reminded of a "not". What is asked also decides where a reply ends: one letter of a word, or all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from recipes.mini.dense import NUM_TOKENS, TOKEN
from torch import Tensor

from fastvlm.demo_data.looks import Look, plain_words
from fastvlm.demo_data.scene import Thing

REMINDED_LAYER, GUIDED_LAYER = 1, 3
GUIDED_HEADS, NEGATED_HEADS = (0, 1), (2,)
REACH = 0.35  # of a thing's size: what lies within it of the centre shows the thing
LEAST_SHARE = 1e-37  # heads are seen to give 1e-36; what lies far below this is not pulled up


@dataclass(frozen=True)
class Gaze:
    """In decoder layer `layer` the token at `position` attends, with `heads`, to the tokens at `seen`."""

    layer: int
    position: int
    seen: tuple[int, ...]
    heads: tuple[int, ...] = GUIDED_HEADS


def tokens_of_all(things: Sequence[Thing]) -> tuple[int, ...]:
    """As `tokens_of`, of all things together."""
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
        things = tuple(dict.fromkeys((*other.things, *look.things)))
        joined[number] = Look(other.start, things, other.words | look.words)
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
