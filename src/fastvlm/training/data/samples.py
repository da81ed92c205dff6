"""Opening of training data: files and folders of any known format -> samples by index, read lazily.

Sources of formats: haotian-liu/LLaVA's ``docs/Finetune_Custom_Data.md``, OpenAI's chat messages, Hugging Face
``datasets``' ``save_to_disk`` and Parquet, webdataset's tar shards.
"""

from __future__ import annotations

import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias, overload

from fastvlm.errors import DataError, UsageError
from fastvlm.records.json_files import BYTE_ORDER_MARK, json_lines, json_records
from fastvlm.records.source import RecordSource
from fastvlm.records.tables import open_parquet, open_saved_dataset
from fastvlm.training.data.columns import TABLE_COLUMNS, table_check
from fastvlm.training.data.messages import read_record
from fastvlm.training.data.tar_shards import UnusedMember, open_shards
from fastvlm.training.grounding.objects import Grounding, read_grounding

ImageSource: TypeAlias = Any  # what `fastvlm.images.open_image` opens: a path, bytes, a PIL image, a file
KNOWN = (
    "a JSON array or JSON Lines of LLaVA's `conversations` or OpenAI's `messages`, a folder that datasets' "
    "`save_to_disk` wrote, Parquet files, .tar shards, or a folder of .parquet, .tar or .jsonl files"
)


class BadRecordError(DataError):
    """A record that cannot be trained on: ``ORIGIN: REASON``.

    One argument is enough, because a DataLoader raises again with the text alone what its workers raised.
    """

    def __init__(self, text: str, origin: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.origin, self.reason = origin, reason or text

    @classmethod
    def at(cls, origin: str, error: Exception) -> BadRecordError:
        """The error for the record at `origin`."""
        return cls(f"{origin}: {error}", origin, str(error))

    def __reduce__(self) -> tuple[type[BadRecordError], tuple[str, str, str]]:
        return type(self), (str(self), self.origin, self.reason)


@dataclass(frozen=True)
class Sample:
    """A conversation with its images.

    Args:
        messages: as ``FastVlmProcessor.apply_chat_template`` takes them, ``{"type": "image"}`` where an image stands.
        images: as many as there are image items, in their order; opened when they are used.
        origin: where it comes from, ``train.jsonl:17``.
        grounding: positions of objects in the images, if the record has them.
    """

    messages: list[dict[str, Any]]
    images: tuple[ImageSource, ...]
    origin: str
    grounding: Grounding | None = None


class Samples(Sequence[Sample]):
    """Samples of one or more sources, by index; a slice, or :meth:`chosen`, gives fewer of them without reading any.

    Args:
        sources: what they are read from, in order.
        images_in: where relative image paths begin; None for each file's own folder.
        order: indices into all records; None for all of them.
        ignored: columns, and keys of turns and items, that are left out.
    """

    def __init__(
        self,
        sources: Sequence[RecordSource],
        *,
        images_in: Path | None = None,
        order: array[int] | None = None,
        ignored: Collection[str] = (),
    ) -> None:
        self._sources, self._images_in, self._order = tuple(sources), images_in, order
        self._ignored = frozenset(ignored)
        self._ends = list(accumulate(len(source) for source in self._sources))

    def __len__(self) -> int:
        if self._order is not None:
            return len(self._order)
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        """Read a sample. Raises BadRecordError (a DataError) if the record cannot be trained on."""
        if isinstance(index, slice):
            return self.chosen(range(len(self))[index])
        source, number = self._place(index)
        origin = source.origin(number)
        try:
            record = source.record(number)
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise DataError(f"it is a {kind}; expected an object with 'conversations' or 'messages'")
            folder = self._images_in or source.folder
            messages, images = read_record(record, folder, ignored=self._ignored)
            grounding = read_grounding(record, len(images), messages, ignored=self._ignored)
        except DataError as error:
            raise BadRecordError.at(origin, error) from error
        return Sample(messages, images, origin, grounding)

    def origin(self, index: int) -> str:
        """Origin of a sample, without reading it."""
        source, number = self._place(index)
        return source.origin(number)

    def chosen(self, indices: Sequence[int]) -> Samples:
        """A subset by indices, in this order."""
        order = array("Q", (self._number(index) for index in indices))
        return Samples(self._sources, images_in=self._images_in, order=order, ignored=self._ignored)

    @property
    def unused(self) -> list[UnusedMember]:
        """Members of the sources' files that belong to no record, of whole files even if samples were chosen."""
        return [member for source in self._sources for member in getattr(source, "unused", ())]

    def _number(self, index: int) -> int:
        """Convert an index to a record number. Raises IndexError."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"There is no sample {index}; there are {size}.")
        index = index + size if index < 0 else index
        return index if self._order is None else self._order[index]

    def _place(self, index: int) -> tuple[RecordSource, int]:
        number = self._number(index)
        which = bisect_right(self._ends, number)
        return self._sources[which], number - (self._ends[which - 1] if which else 0)


def open_samples(
    paths: Sequence[str | Path], *, images_in: str | Path | None = None, ignored: Collection[str] = ()
) -> Samples:
    """The samples of files and folders, in the order given; no image is read yet.

    Args:
        paths: each a file or folder of one of the known kinds; which, is found by looking inside.
        images_in: where relative image paths begin; None for the folder of the file that names them.
        ignored: what is left out though it might matter: columns (`score`), keys of turns and items, and kinds of
            members of tar shards (`seg.png`).

    Raises:
        UsageError: no path, a path that does not exist, or one of no known kind.
        DataError: a file of a known kind that is damaged, or holds no record.
        MissingExtraError: Arrow or Parquet files, without pyarrow.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if not paths:
        raise UsageError(f"No data is given. Expected {KNOWN}.")
    folder = None if images_in is None else Path(images_in)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"There is no folder {folder}, given as the folder of the images.")
    sources = [source for path in paths for source in _open(Path(path), folder, ignored)]
    samples = Samples(sources, images_in=folder, ignored=ignored)
    if not len(samples):
        unused = samples.unused
        first = f" Not used: {unused[0].origin} ({unused[0].reason}); {len(unused)} in all." if unused else ""
        raise DataError(f"{', '.join(map(str, paths))}: found no record. Expected {KNOWN}.{first}")
    return samples


def _open(path: Path, images_in: Path | None, ignored: Collection[str]) -> list[RecordSource]:
    if path.is_dir():
        return _open_folder(path, images_in, ignored)
    if not path.is_file():
        raise UsageError(f"There is no {path}. Expected {KNOWN}.")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    start = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if head.startswith(b"PAR1"):
        return [open_parquet([path], TABLE_COLUMNS, table_check(ignored), images_in)]
    if start == b"[":
        return [json_records(path)]
    if start == b"{":
        return [json_lines(path)]
    if head and tarfile.is_tarfile(path):
        return list(open_shards([path], ignored))
    raise UsageError(f"{path} begins with {head[:12]!r}. Expected {KNOWN}.")


def _open_folder(path: Path, images_in: Path | None, ignored: Collection[str]) -> list[RecordSource]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return [open_saved_dataset(path, TABLE_COLUMNS, table_check(ignored), images_in)]
    if shards := sorted(path.glob("*.tar")):
        return list(open_shards(shards, ignored))
    if files := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return [open_parquet(files, TABLE_COLUMNS, table_check(ignored), images_in)]
    if files := sorted(path.glob("*.jsonl")):
        return [json_lines(file) for file in files]
    raise UsageError(
        f"The folder {path} has no state.json, no *.tar, *.parquet or *.jsonl. Expected {KNOWN}; name a .json itself."
    )
