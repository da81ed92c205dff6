"""INPUT arguments -> shards, each with a name for its output parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastvlm.captioning.files import base_name, is_url, kind_of, num_bytes
from fastvlm.captioning.rows import Row
from fastvlm.captioning.shards import IMAGE_SUFFIXES, Columns, FolderShard, ListShard, Shard, Wanted
from fastvlm.captioning.tables import JsonLinesShard, ParquetShard
from fastvlm.captioning.tar_shard import TarShard
from fastvlm.errors import DataError, UsageError
from fastvlm.storage.locks import brief_lock
from fastvlm.storage.whole_files import write_file

INPUTS_FILE = "inputs.json"
_LIST_SUFFIXES = (".txt", ".lst", ".list")
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_FIXED = (ParquetShard, TarShard)  # files to which nothing can be appended
_EXPECTED = (
    "a folder of images, image files, a list file (.txt), WebDataset shards (.tar), Parquet (.parquet) or JSON Lines "
    "(.jsonl), local or at a URL such as s3://"
)


@dataclass(frozen=True)
class FilesShard:
    """Image files that are named one by one."""

    places: Sequence[str]
    location: str = "image files"
    base_name: str = "images"
    is_ordered: bool = False

    def count(self) -> int | None:
        """Number of files."""
        return len(self.places)

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """A row for each file; its id is its path as given."""
        del wanted
        for place in self.places:
            yield Row(place, place if is_url(place) else str(Path(place).absolute()), sidecar=base_name(place))


@dataclass(frozen=True)
class Inputs:
    """All shards of a run.

    Args:
        shards: in the order of the arguments.
        unused: files in folders that are neither images nor shards, by suffix.
    """

    shards: Sequence[Shard]
    unused: Counter[str] = field(default_factory=Counter)


def open_inputs(arguments: Sequence[str], columns: Columns) -> Inputs:
    """The shards that `arguments` name.

    Raises:
        UsageError: nothing there, or a kind of file that is not read.
        DataError: a folder that cannot be listed.
    """
    shards: list[Shard] = []
    images: list[str] = []
    unused: Counter[str] = Counter()
    for argument in arguments:
        place = argument if is_url(argument) else str(Path(argument).expanduser().absolute())
        kind = kind_of(place)
        if kind is None:
            raise UsageError(f"There is no {argument}; expected {_EXPECTED}.")
        if kind == "file":
            if _suffix(place) in IMAGE_SUFFIXES:
                images.append(argument)
            else:
                shards.append(_file_shard(place, columns))
            continue
        folder = FolderShard(place, base_name(place) or "images")
        found = folder.survey()
        if folder.count():
            shards.append(folder)
        shards += [_file_shard(one, columns) for one in found]
        unused += folder.num_unused
        if not folder.count() and not found:
            raise UsageError(f"{argument} has neither images nor .tar or .parquet files; expected {_EXPECTED}.")
    if images:
        shards.append(FilesShard(images))
    _refuse_twice(shards)
    return Inputs(shards, unused)


def _suffix(place: str) -> str:
    return Path(base_name(place)).suffix.lower()


def _file_shard(place: str, columns: Columns) -> Shard:
    suffix, name = _suffix(place), Path(base_name(place)).stem
    if suffix == ".tar":
        return TarShard(place, name, columns.drop)
    if suffix == ".parquet":
        return ParquetShard(place, name, columns)
    if suffix in _JSON_SUFFIXES:
        return JsonLinesShard(place, name, columns)
    if suffix in _LIST_SUFFIXES:
        return ListShard(place, name)
    raise UsageError(f"{place} is of no kind that is read ({suffix or 'no suffix'}); expected {_EXPECTED}.")


def _refuse_twice(shards: Sequence[Shard]) -> None:
    for location, count in Counter(shard.location for shard in shards).items():
        if count > 1:
            raise UsageError(f"{location} is given {count} times; expected each input once.")


def output_names(out: Path, shards: Sequence[Shard]) -> list[str]:
    """The name of each shard's output parts; one that `out` knows by its location keeps its name.

    Raises:
        DataError: a Parquet or tar file has another size than when its rows were captioned.
    """
    file = out / INPUTS_FILE
    with brief_lock(out / f".{INPUTS_FILE}.lock", file):
        known = _known(file)
        names = [_name(known, shard) for shard in shards]
        write_file(file, json.dumps(known, indent=1) + "\n")
    return names


def _known(file: Path) -> dict[str, dict[str, object]]:
    """Shards of earlier runs by the name of their parts: ``{"location": ..., "num_bytes": ...}``."""
    if not file.exists():
        return {}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): dict(entry) for name, entry in known.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}). Name another --out.") from error


def _name(known: dict[str, dict[str, object]], shard: Shard) -> str:
    size = num_bytes(shard.location) if isinstance(shard, _FIXED) else None
    for name, entry in known.items():
        if entry.get("location") != shard.location:
            continue
        if entry.get("num_bytes") != size:
            raise DataError(
                f"{shard.location} had {entry.get('num_bytes')} bytes when its rows were captioned, and has {size}. "
                "Restore it, or name another --out."
            )
        return name
    base, number = shard.base_name.lstrip(".") or "rows", 1
    name = base
    while name in known:
        number += 1
        name = f"{base}-{number}"
    known[name] = {"location": shard.location, "num_bytes": size}
    return name
