"""Where an answer stands in the picture, and the loss that makes the decoder look there. Used in training only.

A small decoder finds out late that "What color is the star?" is answered by the one token that shows a star: after
70,000 pictures it named a lone shape in 19 of 20 cases and chose among several by chance, though the tokens told them
apart. Here two attention heads are told where to look for the word that is said next; the others are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from recipes.mini.drawing.dense import NUM_TOKENS, TOKEN
from recipes.mini.drawing.scene import Scene, Thing
from recipes.mini.drawing.wording import Turn
from torch import Tensor

GUIDED_LAYER, GUIDED_HEADS = 3, 2
REACH = 0.35  # of a thing's size: what lies within it of the centre shows the thing
LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Look:
    """Before saying `text`, one piece of the answer as tokenised, look at the visual tokens `tokens`."""

    text: str
    tokens: tuple[int, ...]


def looks_of(scene: Scene, turn: Turn) -> list[Look]:
    """What to look at for the words of the answer, in their order; empty where that cannot be said."""
    question, answer = turn
    if scene.topic in ("letter", "word") and scene.lines and answer == scene.lines[0].text:
        glyphs = [thing for thing in scene.things if thing.kind == "glyph"]
        return [Look(thing.name, tokens_of(thing)) for thing in glyphs] if len(glyphs) == len(answer) else []
    if scene.topic == "shapes" and answer.startswith("It is "):
        said = answer.rstrip(".").split()[-1]
        shapes, words = scene.shapes(), set(re.findall(r"[a-z]+", question.lower().replace("grey", "gray")))
        asked = [s for s in shapes if said in (s.colour, s.name) and (s.colour in words or s.name in words)]
        chosen = asked or (shapes if len(shapes) == 1 else [])
        if len(chosen) == 1 and said in (chosen[0].colour, chosen[0].name):
            return [Look(f" {said}", tokens_of(chosen[0]))]
    return []


def tokens_of(thing: Thing) -> tuple[int, ...]:
    """Numbers, row by row, of the visual tokens that show the middle of a thing."""
    reach = REACH * thing.size

    def places(centre: float) -> range:
        first, last = (int((centre + side) // TOKEN) for side in (-reach, reach))
        return range(max(0, min(first, NUM_TOKENS - 1)), max(0, min(last, NUM_TOKENS - 1)) + 1)

    return tuple(row * NUM_TOKENS + column for row in places(thing.y) for column in places(thing.x))


def guided(looks: Sequence[Look], answer_pieces: Sequence[str]) -> list[tuple[int, tuple[int, ...]]]:
    """(number of the piece, visual tokens) for the pieces of an answer, as tokenised, that are looked up in order."""
    found, start = [], 0
    for look in looks:
        number = next((n for n in range(start, len(answer_pieces)) if answer_pieces[n] == look.text), None)
        if number is None:
            return []
        found.append((number, look.tokens))
        start = number + 1
    return found


def look_loss(attention: Tensor, looks: Sequence[Sequence[tuple[int, tuple[int, ...]]]], first_visual: int) -> Tensor:
    """-log of the share of attention on the right visual tokens, over all looks of a batch.

    attention (B, H, T, T): one layer's; looks: per sample (position that looks, visual tokens); the visual tokens
    stand from position `first_visual` on.
    """
    rows = [(b, position, tokens) for b, sample in enumerate(looks) for position, tokens in sample]
    if not rows:
        return attention.new_zeros(())
    samples, positions = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    wanted = torch.zeros(len(rows), 1, attention.shape[-1])
    for number, (_, _, tokens) in enumerate(rows):
        wanted[number, 0, [first_visual + token for token in tokens]] = 1.0
    shares = (attention[samples, :GUIDED_HEADS, positions].float() * wanted).sum(-1)
    return -(shares + LEAST_SHARE).log().mean()
