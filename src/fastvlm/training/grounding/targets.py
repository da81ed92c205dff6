"""Grounding targets: cells, visual tokens and token positions from boxes and words.

Shapes: h x w visual tokens of 64 px, each with 4 x 4 cells of 16 px.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvlm.training.grounding.objects import EMPTY, IGNORED, Box, GroundedObject, Look, ObjectNames

CELL_PX = 16  # of the processed image: the stride of the third stage's map
# Shares of a box, to either side of its center: cells that get the object's class, visual tokens to attend to.
CLAIMED, SHOWN = 0.28, 0.35
LEAST_CLAIM_PX = 0.6 * CELL_PX  # so that a small object claims the cell that it is in
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Mapping from stored to processed pixels: ``processed = scale * stored + offset``."""

    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of(cls, stored: tuple[int, int], processed: tuple[int, int], fit: str) -> Placement:
        """The mapping of `fit_image`, to within a pixel; `stored` and `processed` are (width, height)."""
        ratios = processed[0] / stored[0], processed[1] / stored[1]
        scale = ratios if fit == "stretch" else ((min if fit == "pad" else max)(ratios),) * 2
        offset = tuple((p - s * ratio) / 2 for p, s, ratio in zip(processed, stored, scale, strict=True))
        return cls(scale, (offset[0], offset[1]))

    def place(self, box: Box) -> Box:
        """Map a box of the stored image to the processed one."""
        (across, down), (left, top) = self.scale, self.offset
        return box[0] * across + left, box[1] * down + top, box[2] * across + left, box[3] * down + top


def cells_of(
    objects: Sequence[GroundedObject] | None, names: ObjectNames, placement: Placement, height: int, width: int
) -> Int64Array:
    """Class and color (2, 4h, 4w) of each cell of a processed image; IGNORED if unknown, as all are without objects.

    A cell near several objects belongs to the nearest.

    Raises:
        DataError: an object whose name is not among `names`.
    """
    cells = np.full((2, height // CELL_PX, width // CELL_PX), IGNORED, np.int64)
    if objects is None:
        return cells
    classes, colors = cells
    classes.fill(EMPTY)
    nearest = np.full(classes.shape, np.inf)
    for thing in objects:
        box = placement.place(thing.box)
        rows, columns = (_claimed(box[k], box[k + 2], classes.shape[1 - k]) for k in (1, 0))
        down, across = (
            np.abs((np.arange(span.start, span.stop) + 0.5) * CELL_PX - (box[k] + box[k + 2]) / 2)
            for span, k in ((rows, 1), (columns, 0))
        )
        distance = np.maximum(down[:, None], across[None, :])
        is_ours = distance < nearest[rows, columns]
        nearest[rows, columns][is_ours] = distance[is_ours]
        classes[rows, columns][is_ours] = names.class_of(thing.name)
        colors[rows, columns][is_ours] = names.color_of(thing.color)
    return cells


def _claimed(first: float, last: float, count: int) -> slice:
    """Cells along one axis whose centers are in the inner part of an object from `first` to `last`; at least one."""
    middle, reach = (first + last) / 2, max(LEAST_CLAIM_PX, CLAIMED * (last - first))
    start = int(np.ceil((middle - reach) / CELL_PX - 0.5))
    stop = int(np.floor((middle + reach) / CELL_PX - 0.5)) + 1
    start = min(max(start, 0), count - 1)
    return slice(start, min(max(stop, start + 1), count))


def tokens_of(box: Box, placement: Placement, grid: tuple[int, int], stride_px: int) -> Iterator[int]:
    """Row-major indices of the visual tokens of a `grid` (h, w) in the inner part of a box."""
    left, top, right, bottom = placement.place(box)
    for row in _touched(top, bottom, grid[0], stride_px):
        for column in _touched(left, right, grid[1], stride_px):
            yield row * grid[1] + column


def _touched(first: float, last: float, count: int, stride_px: int) -> range:
    middle, reach = (first + last) / 2, SHOWN * (last - first)
    low, high = (min(max(int(edge // stride_px), 0), count - 1) for edge in (middle - reach, middle + reach))
    return range(low, high + 1)


def positions_of_looks(looks: Sequence[Look], reply: str, pieces: Sequence[str]) -> Iterator[tuple[int, Look]]:
    """Yield (index of the reply's token before which a look happens, the look); the end counts as a token.

    Yields nothing if the pieces do not spell the reply, as for characters of several tokens.
    """
    if "".join(pieces) != reply:
        return
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    for look in looks:
        yield (owner[look.at] if look.at < len(reply) else len(pieces)), look


def pieces_of_words(words: frozenset[str], pieces: Sequence[str]) -> list[int]:
    """Indices of a text's token strings that spell one of `words` (lower case)."""
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    found: set[int] = set()
    for match in re.finditer(r"\w+", "".join(pieces)):
        if match[0].lower() in words:
            found.update(owner[match.start() : match.end()])
    return sorted(found)
