"""Arrow and Parquet files as record sources: folders that ``save_to_disk`` wrote, and Parquet files.

Read by pyarrow alone: both formats are Arrow's own (a stream of record batches, Parquet), and what ``datasets`` adds
(pandas, aiohttp, a cache that copies Parquet before it is read) serves other purposes.

Arrow files are mapped into memory, so a row costs what it holds. A Parquet row costs its row group, of which the last
few are kept; images are read apart from the text, only when they are asked for.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastvlm.errors import DataError, MissingExtraError, UsageError
from fastvlm.records.source import Record

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = -1  # the group of a file that is not divided in row groups
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}.*")


class TableColumns(NamedTuple):
    """The columns that are read: `plain` ones with their values, `images` as paths or :class:`ImageInTable`."""

    plain: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class ImageInTable:
    """An image in a table cell, read lazily; a file object for :func:`fastvlm.images.open_image`.

    Args:
        file, group, row: the cell's place; `group` is ARROW in an Arrow file, `row` counts within the group.
        column: its column.
        item: its index in the cell's list; None where the cell is the image.
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
        """Identity for digests, without reading the image: the file's name and size, and the cell's position."""
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


class _Part(NamedTuple):
    """Rows that are read at once: a row group of a Parquet file, or a whole Arrow file (`group` is ARROW)."""

    file: Path
    group: int
    rows_before: int  # in the same file
    num_rows: int


class TableSource:
    """Rows of Arrow or Parquet files that have the same columns.

    Args:
        parts: the files' row groups, in order.
        columns: what is read of a row.
        images_in: where relative image paths begin; None for the files' folder.
    """

    def __init__(self, parts: Sequence[_Part], columns: TableColumns, images_in: Path | None) -> None:
        self._parts, self._columns = tuple(parts), columns
        self.folder = images_in or parts[0].file.parent
        self._ends = list(accumulate(part.num_rows for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[_Part, int]:
        """(the part, row within it)."""
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)

    def origin(self, index: int) -> str:
        """``data-00000-of-00001.arrow:17``, the row counted from 1 within its file."""
        part, row = self._place(index)
        return f"{part.file}:{part.rows_before + row + 1}"

    def record(self, index: int) -> dict[str, Any]:
        """The columns that are read; bytes of images stay where they are. Raises DataError: the file is damaged."""
        (file, group, _, _), row = self._place(index)
        record: dict[str, Any] = {}
        with _readable(lambda error: f"it cannot be read ({error})"):
            table = _mapped(file) if group == ARROW else _group_texts(file, group, self._columns)
            for name in table.column_names:
                if name in self._columns.plain:
                    record[name] = table.column(name)[row].as_py()
                elif name in self._columns.images:
                    place = ImageInTable(file, group, row, name, None, self.folder)
                    record[name] = _image_column(table.column(name)[row], place)
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

CheckColumns = Callable[[Path, Sequence[str], Callable[[str], bool]], None]  # file, its columns, has a column values?


def open_saved_dataset(
    folder: Path, columns: TableColumns, check: CheckColumns, images_in: Path | None = None
) -> TableSource:
    """A folder that ``Dataset.save_to_disk`` wrote, or a ``DatasetDict``'s with one split.

    Args:
        folder: of the dataset.
        columns: what is read.
        check: raises for a file with columns that cannot be used.
        images_in: where relative image paths begin; None for the folder.

    Raises:
        UsageError: a set with several splits; their folders are named.
        DataError: damaged files.
        MissingExtraError: pyarrow is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _stored_json(folder / "dataset_dict.json").get("splits") or []
        if len(splits) != 1:
            raise UsageError(f"{folder} has the splits {', '.join(splits)}. Name one: {folder / (splits or ['?'])[0]}")
        return open_saved_dataset(folder / splits[0], columns, check, images_in)
    state = _stored_json(folder / "state.json")
    files = [folder / entry.get("filename", "") for entry in state.get("_data_files") or []]
    if not files:
        raise DataError(f"{folder / 'state.json'} names no Arrow file; write the set again with save_to_disk.")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder} is not complete: {', '.join(missing[:3])} is not there. Copy the whole folder.")
    with _readable(lambda error: f"{folder} cannot be read as Arrow ({error}). Was it cut?"):
        tables = [_mapped(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        check(file, table.column_names, partial(_has_cells, table))
    parts = [_Part(file, ARROW, 0, table.num_rows) for file, table in zip(files, tables, strict=True)]
    return TableSource(parts, columns, images_in)


def open_parquet(
    files: Sequence[Path], columns: TableColumns, check: CheckColumns, images_in: Path | None = None
) -> TableSource:
    """Parquet files of one split; arguments as in :func:`open_saved_dataset`.

    Raises:
        UsageError: files of several splits (train-00000-of-00002.parquet and test-00000-of-00001.parquet).
        DataError: damaged files.
        MissingExtraError: pyarrow is not installed.
    """
    splits = sorted({_SHARD_NUMBER.sub("", file.name) for file in files if _SHARD_NUMBER.search(file.name)})
    if len(splits) > 1:
        raise UsageError(f"{files[0].parent} has files of {', '.join(splits)}. Name the files of one.")
    parts: list[_Part] = []
    for file in files:
        with _parquet(file) as parquet:
            metadata = parquet.metadata
            names = metadata.schema.to_arrow_schema().names
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        check(file, names, partial(_has_values, file))
        ends = accumulate(sizes)
        parts += [
            _Part(file, group, end - size, size) for group, (end, size) in enumerate(zip(ends, sizes, strict=True))
        ]
    return TableSource(parts, columns, images_in)


def _has_cells(table: pa.Table, column: str) -> bool:
    return bool(table.column(column).null_count < table.num_rows)


def _has_values(file: Path, column: str) -> bool:
    """False where every cell of a column is null."""
    dataset = _pyarrow().dataset
    return bool(dataset.dataset(file, format="parquet").count_rows(filter=dataset.field(column).is_valid()))


def _stored_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no object; is it a file of datasets?")
    return value


# ---------------------------------------------------------------------------------------------- reading


def parquet_rows(path: Path) -> Iterator[Record]:
    """Every row of a Parquet file with all its columns, in order.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UsageError: there is no such file.
        DataError: no Parquet.
    """
    _pyarrow("eval")
    if not path.is_file():
        raise UsageError(f"There is no file {path}; expected one with records.")
    with _parquet(path) as parquet:
        number = 0
        for batch in parquet.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield Record(path, number, number, row)


def _pyarrow(extra: str = "train") -> Any:
    try:
        import pyarrow  # noqa: PLC0415 - only these formats need it
        import pyarrow.dataset  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra, "Reading Arrow and Parquet") from error
    return pyarrow


@contextmanager
def _readable(words: Callable[[Exception], str]) -> Iterator[None]:
    """pyarrow's errors inside become a DataError with `words`."""
    pa = _pyarrow()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(words(error)) from error


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    with (
        _readable(lambda error: f"{file} cannot be read as Parquet ({error}). Was it cut?"),
        _pyarrow().parquet.ParquetFile(file) as parquet,
    ):
        yield parquet


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
def _group_texts(file: Path, group: int, columns: TableColumns) -> pa.Table:
    """The columns of a row group that are read, without the bytes of images."""
    with _parquet(file) as parquet:
        paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        wanted = [path for path in paths if path.split(".")[0] in columns.plain]
        for name in columns.images:
            leaves = [path for path in paths if path.split(".")[0] == name]
            wanted += [path for path in leaves if not path.endswith(".bytes")] or leaves
        return parquet.read_row_group(group, columns=wanted, use_threads=False)


@lru_cache(maxsize=2)
def _group_images(file: Path, group: int, column: str) -> pa.Table:
    """A column of images of a row group, bytes and all."""
    with _parquet(file) as parquet:
        return parquet.read_row_group(group, columns=[column], use_threads=False)
