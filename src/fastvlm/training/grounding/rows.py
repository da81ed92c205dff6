"""Tensors of a sample's objects and looks for the grounding losses.

Shapes: T tokens, I images of h x w visual tokens, G gazes: tokens that should attend to other tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.processing.replies import ReplyFinder
from fastvlm.training.data.samples import Sample
from fastvlm.training.grounding.objects import Grounding, Look, ObjectNames
from fastvlm.training.grounding.targets import Placement, cells_of, pieces_of_words, positions_of_looks, tokens_of

Gaze = tuple[int, bool, frozenset[int]]  # position, True for words of the question, positions to attend to


class GroundingColumns:
    """Computes the grounding columns of rows; works in DataLoader workers.

    Args:
        processor: that made the rows' ids.
        names: of all objects; None without the object loss.
        has_looks: True with the attention loss.
    """

    def __init__(self, processor: FastVlmProcessor, names: ObjectNames | None, *, has_looks: bool) -> None:
        self.processor, self.names, self.has_looks = processor, names, has_looks
        self._replies, self._image_id = ReplyFinder(processor), int(processor.image_token_id)
        self._pieces: dict[int, str] = {self._image_id: ""}

    def columns(
        self, sample: Sample, ids: Sequence[int], sizes: Sequence[tuple[int, int]], processed: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Compute the columns of a row.

        Args:
            sample: with or without grounding.
            ids: of the row, which may be cut.
            sizes: (width, height) of its images as they are stored.
            processed: (height, width) of each image as the encoder gets it.

        Returns:
            `cell_classes`, `cell_colors` int64 (I, 4h, 4w) with the object loss; `gaze_positions` int64 (G,),
            `gaze_is_reminder` bool (G,), `gaze_seen` bool (G, T) with the attention loss.

        Raises:
            DataError: an object of an unknown name.
        """
        grounding, (height, width) = sample.grounding, processed
        placements = [Placement.of(size, (width, height), self.processor.image_processor.image_fit) for size in sizes]
        columns: dict[str, Tensor] = {}
        if self.names is not None and placements:
            objects = None if grounding is None else grounding.objects
            cells = [
                cells_of(objects and [thing for thing in objects if thing.image == k], self.names, place, *processed)
                for k, place in enumerate(placements)
            ]
            columns["cell_classes"], columns["cell_colors"] = torch.from_numpy(np.stack(cells, axis=1))
        if self.has_looks:
            gazes = [] if grounding is None else list(self._gazes(sample, grounding, ids, placements, processed))
            columns["gaze_positions"] = torch.tensor([position for position, _, _ in gazes], dtype=torch.int64)
            columns["gaze_is_reminder"] = torch.tensor([is_reminder for _, is_reminder, _ in gazes], dtype=torch.bool)
            columns["gaze_seen"] = torch.zeros(len(gazes), len(ids), dtype=torch.bool)
            for row, (_, _, seen) in zip(columns["gaze_seen"], gazes, strict=True):
                row[sorted(seen)] = True
        return columns

    def _gazes(
        self,
        sample: Sample,
        grounding: Grounding,
        ids: Sequence[int],
        placements: Sequence[Placement],
        processed: tuple[int, int],
    ) -> Iterator[Gaze]:
        """Gazes of all replies, without those of truncated text."""
        replies = [_text_of(message) for message in sample.messages if message["role"] == "assistant"]
        visual = [position for position, token in enumerate(ids) if token == self._image_id]
        asked_from = 0
        for number, (start, past) in enumerate(self._replies.spans(ids)):
            looks = [look for look in grounding.looks if look.reply == number]
            question = [self._piece(token) for token in ids[asked_from:start]]
            pieces = [self._piece(token) for token in ids[start : past - 1]]
            together: dict[tuple[int, bool], set[int]] = {}
            for piece, look in positions_of_looks(looks, replies[number], pieces):
                words = {asked_from + place for place in pieces_of_words(look.words, question)}
                tokens = set(self._looked_at(look, grounding, placements, processed))
                for is_reminder, seen in ((True, words), (False, {visual[t] for t in tokens if t < len(visual)})):
                    together.setdefault((start + piece - 1, is_reminder), set()).update(seen)
            yield from ((position, kind, frozenset(seen)) for (position, kind), seen in together.items() if seen)
            asked_from = past

    def _looked_at(
        self, look: Look, grounding: Grounding, placements: Sequence[Placement], processed: tuple[int, int]
    ) -> Iterator[int]:
        """Indices of visual tokens over all images of the sample."""
        stride = self.processor.patch_size
        grid = processed[0] // stride, processed[1] // stride
        for thing in (grounding.objects[number] for number in look.objects if grounding.objects is not None):
            if thing.image < len(placements):
                first = thing.image * grid[0] * grid[1]
                yield from (first + t for t in tokens_of(thing.box, placements[thing.image], grid, stride))

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = str(self.processor.tokenizer.decode([token]))
        return piece


def _text_of(message: dict[str, Any]) -> str:
    return "".join(item["text"] for item in message["content"])
