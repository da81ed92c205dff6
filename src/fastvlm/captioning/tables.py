"""Parquet and JSON Lines files as shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.captioning.files import joined, opened, parent
from fastvlm.captioning.rows import Row
from fastvlm.captioning.shards import ID_COLUMNS, IMAGE_COLUMNS, Columns, Wanted
from fastvlm.errors import UsageError
from fastvlm.records.json_files import stream_json_lines
from fastvlm.records.tables import opened_parquet

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)
_BATCH_ROWS = 32  # of a Parquet file, read at once with their images
_MAX_LINE_BYTES = 1 << 27  # of JSON Lines: an image of 64 MiB as a data URI has 90 MB


@dataclass(frozen=True)
class JsonLinesShard:
    """A file with one object a line, which has the image's place in a column: a path, a URL or a data URI."""

    location: str
    base_name: str
    columns: Columns = field(default_factory=Columns)
    is_ordered: bool = True

    def count(self) -> int | None:
        """Number of lines that are not empty."""
        with opened(self.location) as file:
            return sum(1 for line in file if line.strip())

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """A row for each line that is not empty; a line that is no object with an image has a problem."""
        del wanted
        roles: _Roles | None = None
        with opened(self.location) as file:
            for number, (line, content, damage) in enumerate(stream_json_lines(file, _MAX_LINE_BYTES)):
                is_object = isinstance(content, dict)
                problem = damage or ("" if is_object else f"it is a {type(content).__name__}; expected an object")
                if problem:
                    yield Row(f"{file_name(self.location)}:{number}", problem=f"{self.location}:{line}: {problem}.")
                    continue
                roles = roles or _Roles.of(content, self.columns, self.location)
                yield roles.row(number, content, self.location)


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file with the images' bytes or places in a column."""

    location: str
    base_name: str
    columns: Columns = field(default_factory=Columns)
    is_ordered: bool = True

    def count(self) -> int | None:
        """Number of rows, from the file's footer."""
        with opened(self.location) as file, opened_parquet(file, self.location, "caption") as parquet:
            return int(parquet.metadata.num_rows)

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """All rows. Of a row group without a `wanted` row only the ids are read."""
        with opened(self.location) as file, opened_parquet(file, self.location, "caption") as parquet:
            roles = _Roles.of(parquet.schema_arrow.names, self.columns, self.location)
            _refuse_binary(parquet.schema_arrow, roles, self.columns.drop, self.location)
            kept = [name for name in parquet.schema_arrow.names if name not in self.columns.drop]
            ids = [] if roles.id is None else [roles.id]
            number = 0
            for group in range(parquet.metadata.num_row_groups):
                end = number + parquet.metadata.row_group(group).num_rows
                is_read = any(wanted(row) for row in range(number, end))
                if not is_read and not ids:
                    yield from (Row(roles.id_of(row, {})) for row in range(number, end))
                    number = end
                    continue
                names = kept if is_read else ids
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                    for content in batch.to_pylist():
                        yield (
                            roles.row(number, content, self.location) if is_read else Row(roles.id_of(number, content))
                        )
                        number += 1


@dataclass(frozen=True)
class _Roles:
    """Names of the columns of one file, by what they hold; `name` begins the ids of rows that have none."""

    name: str
    image: str
    id: str | None
    prompt: str | None
    drop: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], columns: Columns, location: str) -> _Roles:
        """Choose the columns of a file. Raises UsageError: one that is asked for, or any for the image, is missing."""
        known = list(names)
        image = columns.image or next((name for name in IMAGE_COLUMNS if name in known), None)
        if image is None:
            raise UsageError(
                f"{location} has the columns {_listed(known)}, and none of {_listed(IMAGE_COLUMNS)}. Name the one that "
                "holds the image's bytes or path: --image-column NAME."
            )
        wanted = ((image, "image"), (columns.id, "id"), (columns.prompt, "prompt"))
        for name, role in wanted:
            if name is not None and name not in known:
                raise UsageError(f"{location} has no column {name!r} (--{role}-column); it has {_listed(known)}.")
        identity = columns.id or next((name for name in ID_COLUMNS if name in known and name != image), None)
        return cls(file_name(location), image, identity, columns.prompt, frozenset(columns.drop))

    def id_of(self, number: int, content: Mapping[str, Any]) -> str:
        """The id of a record; made of its number, from 0, if it has none."""
        value = None if self.id is None else content.get(self.id)
        return f"{self.name}:{number}" if value is None else str(value)

    def row(self, number: int, content: Mapping[str, Any], location: str) -> Row:
        """The row of one record, whose number counts from 0."""
        identity, known = self.id_of(number, content), {self.image, self.id, self.prompt}
        further = {name: value for name, value in content.items() if name not in known and name not in self.drop}
        prompt = None if self.prompt is None else content.get(self.prompt)
        image, problem = _image(content.get(self.image), parent(location))
        if self.prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            problem = problem or f"the column {self.prompt!r} is {prompt!r}; expected a prompt"
        if problem:
            problem = f"{location}, row {number}: {problem}."
        return Row(identity, image, further, prompt if self.prompt else None, problem, sidecar=identity)


def _image(value: object, folder: str) -> tuple[bytes | str, str]:
    """(the image's bytes or place, "") or (b"", the problem), of a cell."""
    if isinstance(value, Mapping):  # as the package datasets stores images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value, ""
    if isinstance(value, str) and value:
        return joined(folder, value), ""
    return b"", f"its image is {value!r:.40}; expected bytes, a path or a URL"


def _refuse_binary(schema: Any, roles: _Roles, drop: Iterable[str], location: str) -> None:
    """Raise UsageError for a further column that no JSON can hold, such as the bytes of a second image."""
    known = {roles.image, roles.id, roles.prompt, *drop}
    binary = [field.name for field in schema if field.name not in known and "binary" in str(field.type)]
    if binary:
        raise UsageError(
            f"{location} has binary columns besides the image ({_listed(binary)}), which cannot be kept in the output. "
            f"Leave them out with --drop {binary[0]}."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def as_json(value: Any) -> str:
    """Further columns as JSON; dates, decimals and the like as texts, NaN as null."""
    try:
        text = _ENCODER.encode(value)
    except ValueError:  # NaN or an infinity, which JSON does not have
        text = _ENCODER.encode(_without_nan(value))
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _without_nan(value: Any) -> Any:
    """`value` with None for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def file_name(location: str) -> str:
    """The name of a shard file without its last suffix."""
    return Path(location).stem
