"""Samples of a recipe's sources, and the split into training and evaluation rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Subset

from fastvlm.errors import DataError
from fastvlm.training.data.digest import DataDigest
from fastvlm.training.data.samples import Samples, open_samples
from fastvlm.training.recipe import DataEntry


def open_mixture(entries: Sequence[DataEntry], seed: int = 0) -> Samples:
    """The samples of a recipe's `data`, each source repeated by its factor.

    Raises:
        UsageError, DataError: a source that is not there or cannot be read; nothing in all of them.
    """
    opened = [
        (open_samples([entry.path], images_in=entry.images_in, ignored=entry.ignore), entry.repeat) for entry in entries
    ]
    samples = Samples.joined(opened, seed)
    if not len(samples):
        raise DataError(f"There are no samples in {', '.join(entry.path for entry in entries)}.")
    return samples


class Portion(Subset[Any]):
    """Some rows of a :class:`fastvlm.training.data.dataset.SupervisedDataset`, with their lengths."""

    dataset: Any

    def digest(self, workers: int = 0) -> DataDigest:
        """Digest of the whole dataset."""
        found: DataDigest = self.dataset.digest(workers)
        return found

    def lengths(self, workers: int = 0) -> list[int]:
        """Number of tokens of every row."""
        every = self.dataset.lengths(workers)
        return [every[index] for index in self.indices]


def split_off(dataset: Any, fraction: float, seed: int) -> tuple[Portion, Portion]:
    """Random disjoint split by `seed` into (training rows, evaluation rows); at least one row in each.

    Raises:
        DataError: too few rows to have both.
    """
    if len(dataset) < 2:
        raise DataError(f"eval.fraction needs two samples or more; there is {len(dataset)}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(1, round(fraction * len(dataset))), len(dataset) - 1)
    return Portion(dataset, sorted(order[count:])), Portion(dataset, sorted(order[:count]))
