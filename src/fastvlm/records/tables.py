"""Arrow and Parquet files as record sources: folders that ``save_to_disk`` wrote, and Parquet files.

Read by pyarrow alone, because ``datasets`` adds dependencies (pandas, aiohttp) and copies Parquet before it reads it.

Arrow files are memory-mapped, so reading a row costs only that row. Reading a Parquet row costs its row group; the last
few groups are kept. Images are read separately from the text, when they are needed.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from fastvlm.errors import DataError, MissingExtraError, UsageError
from fastvlm.records.source import Record

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = -1  # the group of a file that is not divided in row groups
_SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class ImageInTable:
    """An image in a table cell, read lazily; a file object for :func:`fastvlm.images.open_image`.

    Args:
        file, group, row: the cell's place; `group` is ARROW in an Arrow file, `row` counts within the group.
        column: its column.
        item: its index in the cell's list; None where the cell is the image.
        folder: where a relative path in the cell begins.
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
            raise OSError("the cell has neither bytes nor a path")
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
        images: columns of images, whose values become paths or :class:`ImageInTable`.
        unread: columns that are left out.
    """

    def __init__(self, parts: Sequence[_Part], images: Collection[str], unread: Collection[str]) -> None:
        self._parts, self._images, self._unread = tuple(parts), frozenset(images), frozenset(unread)
        self.folder = parts[0].file.parent
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
        """The values of a row; image bytes are not read. Raises DataError: the file is damaged."""
        (file, group, _, _), row = self._place(index)
        with _readable(lambda error: f"it cannot be read ({error})"):
            table = _mapped(file) if group == ARROW else _group_texts(file, group, self._images, self._unread)
            cells = {name: table.column(name)[row] for name in table.column_names if name not in self._unread}
            return {
                name: _image_column(cell, ImageInTable(file, group, row, name, None, self.folder))
                if name in self._images
                else cell.as_py()
                for name, cell in cells.items()
            }


def _image_column(cell: pa.Scalar, place: ImageInTable) -> Any:
    """Paths as they are; an :class:`ImageInTable` for anything with bytes; None for null."""
    if not cell.is_valid:
        return None
    kind = cell.type
    if hasattr(kind, "value_type"):
        if _is_text(kind.value_type):
            return cell.as_py()
        return [replace(place, item=item) for item in range(len(cell.values))]
    return cell.as_py() if _is_text(kind) else place


def _is_text(kind: pa.DataType) -> bool:
    pa = pyarrow_or_extra()
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def open_saved_dataset(folder: Path, images: Collection[str], unread: Collection[str]) -> TableSource:
    """A folder that ``Dataset.save_to_disk`` wrote, or a ``DatasetDict``'s with one split.

    `images` and `unread` are columns, as :class:`TableSource` takes them.

    Raises:
        UsageError: a set with several splits; their folders are named.
        DataError: damaged files.
        MissingExtraError: pyarrow is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _stored_json(folder / "dataset_dict.json").get("splits") or []
        if len(splits) != 1:
            raise UsageError(f"{folder} has the splits {', '.join(splits)}. Name one: {folder / (splits or ['?'])[0]}")
        return open_saved_dataset(folder / splits[0], images, unread)
    state = _stored_json(folder / "state.json")
    files = [folder / entry.get("filename", "") for entry in state.get("_data_files") or []]
    if not files:
        raise DataError(f"{folder / 'state.json'} names no Arrow file; write the set again with save_to_disk.")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder} is not complete: {', '.join(missing[:3])} is not there. Copy the whole folder.")
    with _readable(lambda error: f"{folder} cannot be read as Arrow ({error}). Was it cut?"):
        tables = [_mapped(file) for file in files]
    parts = [_Part(file, ARROW, 0, table.num_rows) for file, table in zip(files, tables, strict=True)]
    return TableSource(parts, images, unread)


def open_parquet(files: Sequence[Path], images: Collection[str], unread: Collection[str]) -> TableSource:
    """Parquet files of one split; `images` and `unread` as :class:`TableSource` takes them.

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
            rows_before = 0
            for group in range(parquet.metadata.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                parts.append(_Part(file, group, rows_before, num_rows))
                rows_before += num_rows
    return TableSource(parts, images, unread)


def _stored_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no object; is it a file of datasets?")
    return value


def parquet_rows(path: Path) -> Iterator[Record]:
    """Every row of a Parquet file with all its columns, in order.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UsageError: there is no such file.
        DataError: no Parquet.
    """
    pyarrow_or_extra("eval")
    if not path.is_file():
        raise UsageError(f"There is no file {path}; expected one with records.")
    with _parquet(path) as parquet:
        rows = (row for batch in parquet.iter_batches(batch_size=64) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Record(path, number, number, row)


def pyarrow_or_extra(extra: str = "train") -> Any:
    """The module pyarrow. Raises MissingExtraError, which names `extra`."""
    try:
        import pyarrow  # noqa: PLC0415 - only these formats need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra, "Reading Arrow and Parquet") from error
    return pyarrow


@contextmanager
def _readable(words: Callable[[Exception], str]) -> Iterator[None]:
    """pyarrow's errors inside become a DataError with `words`."""
    pa = pyarrow_or_extra()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(words(error)) from error


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    with opened_parquet(file, str(file)) as parquet:
        yield parquet


@contextmanager
def opened_parquet(source: Path | BinaryIO, name: str, extra: str = "train") -> Iterator[Any]:
    """pyarrow's ``ParquetFile`` of a path or an open file; errors inside, too, become a DataError that says `name`.

    Raises MissingExtraError, which names `extra`, if pyarrow is not installed.
    """
    pyarrow_or_extra(extra)
    with (
        _readable(lambda error: f"{name} cannot be read as Parquet ({error}). Was it cut?"),
        pyarrow_or_extra().parquet.ParquetFile(source) as parquet,
    ):
        yield parquet


# Each process has its own caches, DataLoader workers too.
@lru_cache(maxsize=256)
def _mapped(file: Path) -> pa.Table:
    """An Arrow stream file, mapped into memory."""
    pa = pyarrow_or_extra()
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


@lru_cache(maxsize=256)
def _num_bytes(file: Path) -> int:
    return file.stat().st_size


@lru_cache(maxsize=16)
def _group_texts(file: Path, group: int, images: frozenset[str], unread: frozenset[str]) -> pa.Table:
    """A row group without `unread` columns and, of images, without the bytes if they have a path too."""
    with _parquet(file) as parquet:
        paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        wanted: list[str] = []
        for name in parquet.schema_arrow.names:
            leaves = [path for path in paths if path == name or path.startswith(f"{name}.")]
            if name in images:
                leaves = [path for path in leaves if not path.endswith(".bytes")] or leaves
            wanted += leaves if name not in unread else []
        return parquet.read_row_group(group, columns=wanted, use_threads=False)


@lru_cache(maxsize=2)
def _group_images(file: Path, group: int, column: str) -> pa.Table:
    """A column of images of a row group, bytes and all."""
    with _parquet(file) as parquet:
        return parquet.read_row_group(group, columns=[column], use_threads=False)
