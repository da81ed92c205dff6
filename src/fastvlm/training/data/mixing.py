"""Mixture of several sources of samples, and the split into training and evaluation samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import Dataset

from fastvlm.errors import DataError
from fastvlm.training.data.digest import DataDigest
from fastvlm.training.data.samples import Sample, open_samples
from fastvlm.training.data.tar_shards import UnusedMember
from fastvlm.training.recipe import DataEntry


class Mixture(Sequence[Sample]):
    """Concatenation of sources, each repeated by its factor.

    Args:
        sources: samples and how often each of them is seen; what a fraction leaves over is drawn by `seed`.
    """

    def __init__(self, sources: Sequence[tuple[Sequence[Sample], float]], seed: int = 0) -> None:
        self.sources = [source for source, _ in sources]
        self.orders = [_order(len(source), repeat, seed) for source, repeat in sources]
        self.ends = list(accumulate(len(order) for order in self.orders))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, number = self._place(index)
        return source[number]

    def origin(self, index: int) -> str:
        """Origin of a sample, without reading it."""
        source, number = self._place(index)
        return str(source.origin(number))

    @property
    def unused(self) -> list[UnusedMember]:
        """Members of the sources' files that belong to no record."""
        return [member for source in self.sources for member in getattr(source, "unused", ())]

    def _place(self, index: int) -> tuple[Any, int]:
        index = range(len(self))[index]
        which = bisect_right(self.ends, index)
        start = self.ends[which - 1] if which else 0
        return self.sources[which], int(self.orders[which][index - start])


def _order(count: int, repeat: float, seed: int) -> torch.Tensor:
    """Indices (int64) into a source: whole repetitions, then a random subset for the fraction."""
    rounds, share = int(repeat), repeat - int(repeat)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(count, generator=generator)[: round(share * count)].sort().values
    return torch.cat([torch.arange(count).repeat(rounds), drawn])


def open_mixture(entries: Sequence[DataEntry], seed: int = 0) -> Mixture:
    """The samples of a recipe's `data`.

    Raises:
        UsageError, DataError: a source that is not there or cannot be read; nothing in all of them.
    """
    sources = [
        (open_samples([entry.path], images_in=entry.images_in, ignored=entry.ignore), entry.repeat) for entry in entries
    ]
    mixture = Mixture(sources, seed)
    if not len(mixture):
        raise DataError(f"There are no samples in {', '.join(entry.path for entry in entries)}.")
    return mixture


class Portion(Dataset[Any]):
    """Some of a dataset's rows, with their lengths; `indices` (N,) int64."""

    def __init__(self, dataset: Any, indices: torch.Tensor) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def digest(self, workers: int = 0) -> DataDigest:
        """Digest of the whole dataset."""
        found: DataDigest = self.dataset.digest(workers)
        return found

    def lengths(self, workers: int = 0) -> list[int]:
        """Number of tokens of every row."""
        every = self.dataset.lengths(workers)
        return [int(every[index]) for index in self.indices.tolist()]


def split_off(dataset: Any, fraction: float, seed: int) -> tuple[Portion, Portion]:
    """Random disjoint split by `seed` into (training rows, evaluation rows); at least one row in each.

    Raises:
        DataError: too few rows to have both.
    """
    if len(dataset) < 2:
        raise DataError(f"eval.fraction needs two samples or more; there is {len(dataset)}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    count = min(max(1, round(fraction * len(dataset))), len(dataset) - 1)
    return Portion(dataset, order[count:].sort().values), Portion(dataset, order[:count].sort().values)
