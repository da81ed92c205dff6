"""Length-grouped sampling: the rows of a batch are about equally long, which saves padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from fastvlm.errors import UsageError

# Batches that are sorted together. More reduce padding and randomness; transformers' sampler also uses 50.
BATCHES_SORTED_TOGETHER = 50


class LengthGroupedBatches(Sampler[int]):
    """A sampler of row indices, batch by batch, for a DataLoader with the same `batch_size`.

    All rows are shuffled, sorted by length within stretches of BATCHES_SORTED_TOGETHER batches, and cut into batches,
    which are shuffled. Only the last batch may be smaller. The longest batch comes first, so that a lack of memory
    shows at once. Text-only rows and rows with images share batches.

    The order depends only on `seed` and the epoch, so a resumed run can skip the rows that it has used.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int = 0) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; expected at least 1.")
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> list[list[int]]:
        """The batches of this epoch, in order."""
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)  # a prime: no two share an order
        order = torch.randperm(len(self.lengths), generator=chance).tolist()
        stretch = self.batch_size * BATCHES_SORTED_TOGETHER
        batches: list[list[int]] = []
        for begin in range(0, len(order), stretch):
            rows = sorted(order[begin : begin + stretch], key=self.lengths.__getitem__, reverse=True)
            batches += [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        batches = [batches[k] for k in torch.randperm(len(batches), generator=chance).tolist()]
        if batches:
            longest = max(range(len(batches)), key=lambda k: self.lengths[batches[k][0]])
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches + rest
