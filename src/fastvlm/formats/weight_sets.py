"""Finds the weight files of a folder, and refuses a choice between several complete sets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import FETCH_AGAIN, read_json


@dataclass(frozen=True)
class WeightSet:
    """One complete set of weights of a folder.

    Args:
        files: the weight files, in order.
        index: the file that maps tensors to files, if there is one.
    """

    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def label(self) -> str:
        """Its name in messages."""
        if self.index is None:
            return " and ".join(file.name for file in self.files)
        return f"{self.index.name} with {len(self.files)} shard{'s' if self.files[1:] else ''}"

    @property
    def is_pickle(self) -> bool:
        """True for ``.bin`` files."""
        return self.files[0].suffix == ".bin"


def one_weight_set(folder: Path, *names: str, first: WeightSet | None = None) -> WeightSet | None:
    """The weights of `folder`, or None if it has none.

    Two complete sets of the same format are an error, because they may differ and nothing says which one is meant.
    ``.bin`` files next to safetensors are common on the Hub as copies; the safetensors are used, with a warning.

    Args:
        folder: the folder.
        names: single files in order of preference (``model.safetensors``, ``pytorch_model.bin``); the index of shards
            has the same name and ``.index.json``.
        first: a set that was already found and precedes those of `names`.

    Raises:
        CheckpointError: two complete sets of one format, or the only set is incomplete.
    """
    sets = [*([] if first is None else [first]), *(found for name in names for found in _complete_sets(folder, name))]
    for name in names:
        index = folder / f"{name}.index.json"
        if index.is_file() and not (folder / name).is_file() and (not sets or sets[0].files[0].suffix == ".bin"):
            _check_complete(index)
    if not sets:
        return None
    chosen, *others = sets
    twins = [other for other in others if other.is_pickle == chosen.is_pickle]
    if twins:
        raise CheckpointError(
            f"{folder} holds two complete sets of weights: {chosen.label}, and {twins[0].label}. Nothing says which "
            "one is meant: move the files of one of them to another folder."
        )
    if others:
        warnings.warn(
            f"{folder} holds two complete sets of weights: {chosen.label}, and {others[0].label}. The safetensors are "
            "taken; move the others to another folder if they are no copy.",
            stacklevel=2,
        )
    return chosen


def weight_map(index: Path) -> Mapping[str, str]:
    """Name of a tensor -> name of its file, from an index.

    Raises:
        CheckpointError: the index has no such table, or names files of other folders.
    """
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) and Path(v).name == v for v in table.values()):
        raise CheckpointError(
            f"{index} has no 'weight_map' from tensor names to files of the same folder. {FETCH_AGAIN}"
        )
    if not table:
        raise CheckpointError(f"{index} names no tensors. {FETCH_AGAIN}")
    return table


def some_of(names: Iterable[str], limit: int = 10) -> str:
    """The first `limit` of `names`, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _complete_sets(folder: Path, name: str) -> list[WeightSet]:
    single, index = folder / name, folder / f"{name}.index.json"
    sets = [WeightSet((single,))] if single.is_file() else []
    if index.is_file() and all(file.is_file() for file in _shards(index)):
        sets.append(WeightSet(tuple(_shards(index)), index))
    return sets


def _shards(index: Path) -> list[Path]:
    return [index.parent / name for name in sorted(set(weight_map(index).values()))]


def _check_complete(index: Path) -> None:
    """Raise where the index names files that are not there."""
    shards = _shards(index)
    if not (lost := [file.name for file in shards if not file.is_file()]):
        return
    raise CheckpointError(
        f"{index.name} names {len(shards)} weight files, but {some_of(lost)} of them "
        f"{'are' if lost[1:] else 'is'} not in {index.parent}. The download seems incomplete: fetch the missing files."
    )
