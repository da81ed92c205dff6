"""The training and evaluation rows of a recipe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Subset

from fastvlm.errors import DataError
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.training.data.dataset import SupervisedDataset
from fastvlm.training.data.samples import Samples, open_samples
from fastvlm.training.grounding.objects import ObjectNames
from fastvlm.training.grounding.rows import GroundingColumns
from fastvlm.training.recipe import DataEntry, Recipe


def open_rows(recipe: Recipe, processor: FastVlmProcessor) -> tuple[Rows, Rows | None]:
    """(training rows, evaluation rows or None): datasets with `lengths` and `digest`.

    Warns once, in the first process, of shard members that are not used. Raises UsageError and DataError.
    """
    data = open_dataset(recipe, recipe.data, processor)
    unused = data.samples.unused if isinstance(data.samples, Samples) else []
    if unused and os.environ.get("RANK", "0") == "0":
        shown = "; ".join(f"{member.origin}: {member.reason}" for member in unused[:3])
        warnings.warn(f"{len(unused)} members of shards are not used ({shown}). --check lists them.", stacklevel=1)
    if recipe.eval is None:
        return data, None
    if recipe.eval.fraction is not None:
        return split_off(data, recipe.eval.fraction, recipe.seed)
    return data, open_dataset(recipe, recipe.eval.data, processor)


def open_dataset(recipe: Recipe, entries: Sequence[DataEntry], processor: FastVlmProcessor) -> SupervisedDataset:
    """Open sources as a recipe's dataset. Raises UsageError and DataError."""
    grounded = None
    if recipe.grounding is not None:
        grounded = GroundingColumns(processor, object_names(recipe), has_looks=recipe.grounding.looks > 0)
    samples = open_mixture(entries, recipe.seed)
    return SupervisedDataset(samples, processor, max_tokens=recipe.max_tokens, grounded=grounded)


def object_names(recipe: Recipe) -> ObjectNames | None:
    """Names of all objects in a recipe's data; None if it has no object loss."""
    if recipe.grounding is None or not recipe.grounding.objects:
        return None
    return ObjectNames.next_to(Path(entry.path) for entry in recipe.data)


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


class Portion(Subset[dict[str, Tensor]]):
    """Some rows of a :class:`fastvlm.training.data.dataset.SupervisedDataset`, with their lengths."""

    dataset: SupervisedDataset

    def digest(self, workers: int = 0) -> dict[str, Any]:
        """Digest of the whole dataset."""
        return self.dataset.digest(workers)

    def lengths(self, workers: int = 0) -> list[int]:
        """Number of tokens of every row."""
        every = self.dataset.lengths(workers)
        return [every[index] for index in self.indices]


Rows: TypeAlias = SupervisedDataset | Portion


def split_off(dataset: SupervisedDataset, fraction: float, seed: int) -> tuple[Portion, Portion]:
    """Random disjoint split by `seed` into (training rows, evaluation rows); at least one row in each.

    Raises:
        DataError: too few rows to have both.
    """
    if len(dataset) < 2:
        raise DataError(f"eval.fraction needs two samples or more; there is {len(dataset)}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(1, round(fraction * len(dataset))), len(dataset) - 1)
    return Portion(dataset, sorted(order[count:])), Portion(dataset, sorted(order[:count]))
