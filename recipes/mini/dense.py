"""Dense targets for the encoder: what stands in every 16 px cell of a picture.

Each of the 4 x 4 visual tokens of a 256 px picture predicts its own 4 x 4 cells (class of the thing whose heart
covers the cell, and its colour), and the emoji that reaches into its 64 px. Naming only the cell of the exact
centre was tried first: after 4,000 pictures nothing but colours had been learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvlm.demo_data.canvas import SIZE
from fastvlm.demo_data.clothes import CLOTHES
from fastvlm.demo_data.scene import Scene, Thing
from fastvlm.demo_data.vocabulary import COLOUR_NAMES, EMOJI_NAMES, GLYPHS, SHAPE_NAMES

CELL = 16
TOKEN = 64
NUM_CELLS, NUM_TOKENS = SIZE // CELL, SIZE // TOKEN  # across and down
NAMED: tuple[tuple[str, str], ...] = (
    *(("glyph", char) for char in GLYPHS),
    *(("shape", name) for name in SHAPE_NAMES),
    *(("clothing", name) for name in CLOTHES),
)
CLASSES: tuple[str, ...] = ("", *(name for _, name in NAMED), "emoji")
CLASS_OF: dict[tuple[str, str], int] = {thing: number for number, thing in enumerate(NAMED, start=1)}
EMOJI_CLASS = len(CLASSES) - 1
COLOUR_OF = {name: index for index, name in enumerate(COLOUR_NAMES)}
EMOJI_OF = {name: index for index, name in enumerate(EMOJI_NAMES)}
IGNORED = -100
HEART = 0.28  # a thing claims the cells whose middle is within this share of its size from its centre


@dataclass(frozen=True)
class DenseTarget:
    """`classes`, `colours` (SIZE/16, SIZE/16), `emoji` (SIZE/64, SIZE/64), int64; IGNORED: nothing to say."""

    classes: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    emoji: npt.NDArray[np.int64]


def nothing_known() -> DenseTarget:
    """The dense target of a picture that was not drawn here."""
    cells, tokens = (NUM_CELLS, NUM_CELLS), (NUM_TOKENS, NUM_TOKENS)
    return DenseTarget(*(np.full(shape, IGNORED, np.int64) for shape in (cells, cells, tokens)))


def dense_target(scene: Scene) -> DenseTarget:
    """The targets of one picture; a cell near several things belongs to the nearest one."""
    classes = np.zeros((NUM_CELLS, NUM_CELLS), dtype=np.int64)
    colours = np.full((NUM_CELLS, NUM_CELLS), IGNORED, dtype=np.int64)
    emoji = np.full((NUM_TOKENS, NUM_TOKENS), IGNORED, dtype=np.int64)
    nearest = np.full((NUM_CELLS, NUM_CELLS), np.inf)
    for thing in scene.things:
        distance = _distance(thing)
        is_ours = (distance < nearest) & (distance <= max(0.6 * CELL, HEART * thing.size))
        row, column = centre_cell(thing)
        is_ours[row, column] |= nearest[row, column] > 0
        nearest[is_ours] = distance[is_ours]
        nearest[row, column] = 0
        classes[is_ours] = EMOJI_CLASS if thing.kind == "emoji" else CLASS_OF[thing.kind, thing.name]
        colours[is_ours] = COLOUR_OF.get(thing.colour, IGNORED)
        if thing.kind == "emoji":
            emoji[_tokens_of(is_ours)] = EMOJI_OF[thing.name]
    return DenseTarget(classes, colours, emoji)


def _distance(thing: Thing) -> npt.NDArray[np.float64]:
    """(NUM_CELLS, NUM_CELLS) px from each cell's middle to the thing's, the larger of across and down."""
    middles = (np.arange(NUM_CELLS) + 0.5) * CELL
    across, down = np.abs(middles[None, :] - thing.x), np.abs(middles[:, None] - thing.y)
    return np.asarray(np.maximum(across, down))


def _tokens_of(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(NUM_TOKENS, NUM_TOKENS): tokens that hold one of the cells."""
    per_token = TOKEN // CELL
    return np.asarray(cells.reshape(NUM_TOKENS, per_token, NUM_TOKENS, per_token).any((1, 3)))


def centre_cell(thing: Thing) -> tuple[int, int]:
    """(row, column) of the cell that holds the thing's centre."""
    row = min(NUM_CELLS - 1, max(0, int(thing.y // CELL)))
    return row, min(NUM_CELLS - 1, max(0, int(thing.x // CELL)))
