"""Collation: rows of different lengths -> a batch, padded on the right, with the images of all rows in one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastvlm.errors import DataError
from fastvlm.training.data.dataset import IGNORED

_OF_IMAGES = ("pixel_values", "cell_classes", "cell_colors")


@dataclass(frozen=True)
class Collator:
    """Makes batches of :class:`fastvlm.training.data.dataset.SupervisedDataset`'s rows.

    Args:
        pad_token_id: fills `input_ids`; never attended to, so any id except the image's works.
    """

    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Collate rows into a batch.

        Args:
            rows: `input_ids`, `labels` int64 (T,), and `pixel_values` float32 (I, 3, H, W) where there are images.

        Returns:
            `input_ids`, `attention_mask`, `labels` int64 (B, T), padded on the right by `pad_token_id`, 0 and IGNORED;
            `pixel_values` float32 (sum of I, 3, H, W), in the rows' order, unless no row has an image. Of grounded
            rows `cell_classes`, `cell_colors` int64 (sum of I, 4h, 4w); `gaze_rows` int64 (sum of G,), the row that
            each gaze belongs to, `gaze_positions`, `gaze_is_reminder` (sum of G,), `gaze_seen` bool (sum of G, T).

        Raises:
            DataError: no row.
        """
        if not rows:
            raise DataError("Got no rows; a batch has at least one.")
        batch = {
            "input_ids": pad_sequence([row["input_ids"] for row in rows], True, self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], True),
            "labels": pad_sequence([row["labels"] for row in rows], True, IGNORED),
        }
        for column in _OF_IMAGES:
            if found := [row[column] for row in rows if column in row]:
                batch[column] = torch.cat(found)
        if "gaze_seen" in rows[0]:
            batch.update(self._gazes(rows, width=batch["input_ids"].shape[1]))
        return batch

    def _gazes(self, rows: Sequence[Mapping[str, Tensor]], width: int) -> dict[str, Tensor]:
        """The gazes of all rows, concatenated and padded to T tokens."""
        counts = torch.tensor([len(row["gaze_positions"]) for row in rows])
        return {
            "gaze_rows": torch.arange(len(rows)).repeat_interleave(counts),
            "gaze_positions": torch.cat([row["gaze_positions"] for row in rows]),
            "gaze_is_reminder": torch.cat([row["gaze_is_reminder"] for row in rows]),
            "gaze_seen": torch.cat(
                [torch.nn.functional.pad(row["gaze_seen"], (0, width - row["gaze_seen"].shape[1])) for row in rows]
            ),
        }
