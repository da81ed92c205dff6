"""Hugging Face sets on disk as record sources: folders that ``save_to_disk`` wrote, and Parquet files.

Read by pyarrow alone: both formats are Arrow's own (a stream of record batches, Parquet), and what ``datasets`` adds
(pandas, aiohttp, a cache that copies Parquet before it is read) serves other purposes.

Arrow files are mapped into memory, so a row costs what it holds. A Parquet row costs its row group, of which the last
few are kept; images are read apart from the text, only when they are asked for.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.errors import DataError, MissingExtraError, UsageError
from fastvlm.training.record_columns import (
    IMAGE_COLUMNS,
    METADATA_COLUMNS,
    READ_COLUMNS,
    REFUSED_COLUMNS,
    TURN_COLUMNS,
    unknown_names,
    with_nearest,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ImageInTable", "TableSource", "open_parquet", "open_saved_dataset"]

_PLAIN_COLUMNS = tuple(name for name in (*READ_COLUMNS, *REFUSED_COLUMNS) if name not in IMAGE_COLUMNS)
ARROW = -1  # the group of a file that is not divided in row groups
_KNOWN = {*READ_COLUMNS, *REFUSED_COLUMNS, *METADATA_COLUMNS}
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class ImageInTable:
    """An image in a cell, read when it is asked for; what :func:`fastvlm.images.open_image` takes as a file.

    Args:
        file, group, row: the cell's place; `group` is ARROW in an Arrow file, `row` counts within the group.
        column: its column.
        item: which one of the cell's list; None where the cell is the image.
        folder: where a path that stands there instead of bytes begins.
    """

    file: Path
    group: int
    row: int
    column: str
    item: int | None
    folder: Path

    @property
    def identity(self) -> str:
        """What tells it from another image without reading it: its file's name and size, and the place in there."""
        place = (self.group, self.row, self.column, self.item)
        return f"{self.file.name} of {_num_bytes(self.file)} bytes: {place}"

    def read(self, size: int = -1) -> bytes:
        """The first `size` bytes of the image, or all. Raises OSError, as files do."""
        table = _mapped(self.file) if self.group == ARROW else _group_images(self.file, self.group, self.column)
        cell = table.column(self.column)[self.row]
        if self.item is not None:
            cell = cell.values[self.item]
        value = cell.as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value if size < 0 else value[:size]
        if not value:
            raise OSError("neither bytes nor a path stand there")
        with (self.folder / value).open("rb") as file:
            return bytes(file.read(size))


class TableSource:
    """Rows of Arrow or Parquet files that have the same columns.

    Args:
        files: the files, in order.
        groups: (file's number, group, rows) of each part that is read at once.
        images_in: where relative image paths begin; None for the files' folder.
    """

    def __init__(
        self, files: Sequence[Path], groups: Sequence[tuple[int, int, int]], images_in: Path | None = None
    ) -> None:
        self.files, self.folder = tuple(files), images_in or files[0].parent
        self._groups = tuple(groups)
        self._ends = list(accumulate(rows for _, _, rows in self._groups))
        self._rows_before = self._rows_before_each_group()

    def _rows_before_each_group(self) -> list[int]:
        """Rows of the same file that stand before a group."""
        before: list[int] = []
        for number, (which, _, _) in enumerate(self._groups):
            is_first = not number or self._groups[number - 1][0] != which
            before.append(0 if is_first else before[-1] + self._groups[number - 1][2])
        return before

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _place(self, index: int) -> tuple[int, Path, int, int]:
        """(number of the group, file, group within the file, row within the group)."""
        number = bisect_right(self._ends, index)
        which, group, _ = self._groups[number]
        return number, self.files[which], group, index - (self._ends[number - 1] if number else 0)

    def origin(self, index: int) -> str:
        """``data-00000-of-00001.arrow:17``, the row counted from 1 within its file."""
        number, file, _, row = self._place(index)
        return f"{file}:{self._rows_before[number] + row + 1}"

    def record(self, index: int) -> dict[str, Any]:
        """The columns that matter; bytes of images stay where they are. Raises DataError: the file is damaged."""
        _, file, group, row = self._place(index)
        pa = _pyarrow()
        try:
            table = _mapped(file) if group == ARROW else _group_texts(file, group)
            record: dict[str, Any] = {}
            for name in table.column_names:
                if name in _PLAIN_COLUMNS:
                    record[name] = table.column(name)[row].as_py()
                elif name in IMAGE_COLUMNS:
                    place = ImageInTable(file, group, row, name, None, self.folder)
                    record[name] = _image_column(table.column(name)[row], place)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"it cannot be read ({error})") from error
        return record


def _image_column(cell: pa.Scalar, place: ImageInTable) -> Any:
    """Paths as they are, anything with bytes as places to read from, nothing for null."""
    if not cell.is_valid:
        return None
    kind = cell.type
    if hasattr(kind, "value_type"):
        if _is_text(kind.value_type):
            return cell.as_py()
        return [
            ImageInTable(place.file, place.group, place.row, place.column, item, place.folder)
            for item in range(len(cell.values))
        ]
    return cell.as_py() if _is_text(kind) else place


def _is_text(kind: pa.DataType) -> bool:
    pa = _pyarrow()
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# ---------------------------------------------------------------------------------------------- opening


def open_saved_dataset(folder: Path, images_in: Path | None = None, ignored: Collection[str] = ()) -> TableSource:
    """A folder that ``Dataset.save_to_disk`` wrote, or a ``DatasetDict``'s with one split.

    Raises:
        UsageError: a set with several splits; their folders are named.
        DataError: damaged files, rows without turns, or values in a column that nobody reads and `ignored` has not.
        MissingExtraError: pyarrow is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _stored_json(folder / "dataset_dict.json").get("splits") or []
        if len(splits) != 1:
            raise UsageError(f"{folder} has the splits {', '.join(splits)}. Name one: {folder / (splits or ['?'])[0]}")
        return open_saved_dataset(folder / splits[0], images_in, ignored)
    state = _stored_json(folder / "state.json")
    names = [entry.get("filename", "") for entry in state.get("_data_files") or []]
    files = [folder / name for name in names]
    if not files:
        raise DataError(f"{folder / 'state.json'} names no Arrow file; write the set again with save_to_disk.")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder} is not complete: {', '.join(missing[:3])} is not there. Copy the whole folder.")
    pa = _pyarrow()
    try:
        tables = [_mapped(file) for file in files]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder} cannot be read as Arrow ({error}). Was it cut?") from error
    for file, table in zip(files, tables, strict=True):
        _check_columns(file, table.column_names)
        names = unknown_names(table.column_names, _KNOWN, ignored)
        _refuse_unknown(file, [name for name in names if table.column(name).null_count < table.num_rows])
    return TableSource(files, [(which, ARROW, table.num_rows) for which, table in enumerate(tables)], images_in)


def open_parquet(files: Sequence[Path], images_in: Path | None = None, ignored: Collection[str] = ()) -> TableSource:
    """Parquet files of one split.

    Raises:
        UsageError: files of several splits (train-00000-of-00002.parquet beside test-00000-of-00001.parquet).
        DataError: damaged files, rows without turns, or values in a column that nobody reads and `ignored` has not.
        MissingExtraError: pyarrow is not installed.
    """
    splits = sorted({_SHARD_NUMBER.sub("", file.name) for file in files if _SHARD_NUMBER.search(file.name)})
    if len(splits) > 1:
        raise UsageError(f"{files[0].parent} has files of {', '.join(splits)}. Name the files of one.")
    pa = _pyarrow()
    groups: list[tuple[int, int, int]] = []
    for which, file in enumerate(files):
        try:
            parquet = _parquet(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({error}). Was it cut?") from error
        metadata = parquet.metadata
        columns = metadata.schema.to_arrow_schema().names
        _check_columns(file, columns)
        names = unknown_names(columns, _KNOWN, ignored)
        _refuse_unknown(file, [name for name in names if _has_values(parquet, name)])
        groups += [(which, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    return TableSource(files, groups, images_in)


def _check_columns(file: Path, names: Sequence[str]) -> None:
    if not set(TURN_COLUMNS) & set(names):
        raise DataError(
            f"{file} has the columns {', '.join(names)}; expected {' or '.join(TURN_COLUMNS)}, with "
            f"{' or '.join(IMAGE_COLUMNS)} for images."
        )


def _refuse_unknown(file: Path, names: Sequence[str]) -> None:
    if names:
        raise DataError(
            f"{file} has values in {with_nearest(names, READ_COLUMNS)}, which would not be read; known here: "
            f"{', '.join(READ_COLUMNS)}. Rename or remove the columns, or name each to be left out: "
            f"{' '.join(f'--ignore {name}' for name in names)}"
        )


def _has_values(parquet: Any, column: str) -> bool:
    """False where every cell of a column is null: by the file's statistics, or, if they do not tell, by reading."""
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        leaves = [group.column(index) for index in range(group.num_columns)]
        found = [leaf.statistics for leaf in leaves if f"{leaf.path_in_schema}.".startswith(f"{column}.")]
        if any(known is not None and known.has_min_max for known in found):
            return True
        cells = parquet.read_row_group(number, columns=[column], use_threads=False).column(column)
        if cells.null_count < len(cells):
            return True
    return False


def _stored_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no object; is it a file of datasets?")
    return value


# ---------------------------------------------------------------------------------------------- reading


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 - only these formats need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train", "Reading Arrow and Parquet") from error
    return pyarrow


def _parquet(file: Path) -> Any:
    return _pyarrow().parquet.ParquetFile(file)


# Caches are a process's own: a worker that was forked, or started anew, opens what it needs.
@lru_cache(maxsize=256)
def _mapped(file: Path) -> pa.Table:
    """An Arrow stream file, mapped into memory."""
    pa = _pyarrow()
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


@lru_cache(maxsize=256)
def _num_bytes(file: Path) -> int:
    return file.stat().st_size


@lru_cache(maxsize=16)
def _group_texts(file: Path, group: int) -> pa.Table:
    """The columns of a row group that matter, without the bytes of images beside the messages."""
    with _parquet(file) as parquet:
        paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        wanted = [path for path in paths if path.split(".")[0] in _PLAIN_COLUMNS]
        for name in IMAGE_COLUMNS:
            leaves = [path for path in paths if path.split(".")[0] == name]
            wanted += [path for path in leaves if not path.endswith(".bytes")] or leaves
        return parquet.read_row_group(group, columns=wanted, use_threads=False)


@lru_cache(maxsize=2)
def _group_images(file: Path, group: int, column: str) -> pa.Table:
    """A column of images of a row group, bytes and all."""
    with _parquet(file) as parquet:
        return parquet.read_row_group(group, columns=[column], use_threads=False)
