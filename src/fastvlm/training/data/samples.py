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

import torch

from fastvlm.errors import DataError, UsageError
from fastvlm.records.json_files import BYTE_ORDER_MARK, json_lines, json_records
from fastvlm.records.source import RecordSource
from fastvlm.records.tables import open_parquet, open_saved_dataset
from fastvlm.training.data.columns import IMAGE_COLUMNS, METADATA_COLUMNS
from fastvlm.training.data.messages import read_record
from fastvlm.training.data.tar_shards import TarShard, UnusedMember
from fastvlm.training.grounding.objects import Grounding, read_grounding

ImageSource: TypeAlias = Any  # what `fastvlm.images.open_image` opens: a path, bytes, a PIL image, a file
KNOWN = (
    "a JSON array or JSON Lines of LLaVA's `conversations` or OpenAI's `messages`, a folder that datasets' "
    "`save_to_disk` wrote, Parquet files, .tar shards, or a folder of .parquet, .tar or .jsonl files"
)


class BadRecordError(DataError):
    """A record that cannot be trained on: ``ORIGIN: REASON``.

    One argument is enough, because a DataLoader creates its workers' errors again from their text.
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
        messages: as ``FastVlmProcessor.apply_chat_template`` takes them, ``{"type": "image"}`` for each image.
        images: as many as there are image items, in their order; opened when they are used.
        origin: its file and line, ``train.jsonl:17``.
        grounding: positions of objects in the images, if the record has them.
    """

    messages: list[dict[str, Any]]
    images: tuple[ImageSource, ...]
    origin: str
    grounding: Grounding | None = None


class Samples(Sequence[Sample]):
    """Samples of one or more files, by index; a slice, or :meth:`chosen`, gives fewer of them without reading any.

    Args:
        sources: what they are read from, in order, each with the keys of its records that are left out.
        order: indices into all records; None for all of them.
    """

    def __init__(
        self, sources: Sequence[tuple[RecordSource, Collection[str]]], order: array[int] | None = None
    ) -> None:
        self._sources, self._order = tuple(sources), order
        self._ends = list(accumulate(len(source) for source, _ in self._sources))

    @classmethod
    def joined(cls, parts: Sequence[tuple[Samples, float]], seed: int = 0) -> Samples:
        """Several samples one after the other, each repeated by its factor; `seed` draws what a fraction selects."""
        order, begin = array("Q"), 0
        for samples, repeat in parts:
            order.extend(begin + samples._number(index) for index in _repeated(len(samples), repeat, seed))
            begin += samples._ends[-1] if samples._ends else 0
        return cls([source for samples, _ in parts for source in samples._sources], order)

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
        source, ignored, number = self._place(index)
        origin = source.origin(number)
        try:
            record = source.record(number)
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise DataError(f"it is a {kind}; expected an object with 'conversations' or 'messages'")
            messages, images = read_record(record, source.folder, ignored=ignored)
            grounding = read_grounding(record, len(images), messages, ignored=ignored)
        except DataError as error:
            raise BadRecordError.at(origin, error) from error
        return Sample(messages, images, origin, grounding)

    def origin(self, index: int) -> str:
        """Origin of a sample, without reading it."""
        source, _, number = self._place(index)
        return source.origin(number)

    def chosen(self, indices: Sequence[int]) -> Samples:
        """A subset by indices, in this order."""
        return Samples(self._sources, array("Q", map(self._number, indices)))

    @property
    def unused(self) -> list[UnusedMember]:
        """Members of the files that belong to no record, of whole files even if samples were chosen."""
        return [member for source, _ in self._sources for member in getattr(source, "unused", ())]

    def _number(self, index: int) -> int:
        """Convert an index to a record number. Raises IndexError."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"There is no sample {index}; there are {size}.")
        return index % size if self._order is None else self._order[index]

    def _place(self, index: int) -> tuple[RecordSource, Collection[str], int]:
        number = self._number(index)
        which = bisect_right(self._ends, number)
        return *self._sources[which], number - (self._ends[which - 1] if which else 0)


def _repeated(count: int, repeat: float, seed: int) -> list[int]:
    """Indices below `count`: whole repetitions, then a random subset for the fraction."""
    rounds, share = int(repeat), repeat - int(repeat)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: round(share * count)]
    return [*range(count)] * rounds + drawn.sort().values.tolist()


def open_samples(
    paths: Sequence[str | Path], *, images_in: str | Path | None = None, ignored: Collection[str] = ()
) -> Samples:
    """The samples of files and folders, in the order given; no image is read yet.

    Args:
        paths: each a file or folder of one of the known kinds, which is detected from its content.
        images_in: where relative image paths begin; None for the folder of the file that names them.
        ignored: unknown names that are left out: columns (`score`), keys of turns and items, and kinds of members of
            tar shards (`seg.png`).

    Raises:
        UsageError: no path, a path that does not exist, or one of no known kind.
        DataError: a file of a known kind that is damaged, or holds no record.
        MissingExtraError: Arrow or Parquet files, without pyarrow.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if not paths:
        raise UsageError(f"No data is given. Expected {KNOWN}.")
    sources = [source for path in paths for source in _open(Path(path), ignored)]
    if images_in is not None:
        if not Path(images_in).is_dir():
            raise UsageError(f"There is no folder {images_in}, given as the folder of the images.")
        for source in sources:
            source.folder = Path(images_in)
    samples = Samples([(source, frozenset(ignored)) for source in sources])
    if not len(samples):
        unused = samples.unused
        first = f" Not used: {unused[0].origin} ({unused[0].reason}); {len(unused)} in all." if unused else ""
        raise DataError(f"{', '.join(map(str, paths))}: found no record. Expected {KNOWN}.{first}")
    return samples


def _open(path: Path, ignored: Collection[str]) -> Sequence[RecordSource]:
    if path.is_dir():
        return _open_folder(path, ignored)
    if not path.is_file():
        raise UsageError(f"There is no {path}. Expected {KNOWN}.")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    start = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if head.startswith(b"PAR1"):
        return [open_parquet([path], IMAGE_COLUMNS, {*METADATA_COLUMNS, *ignored})]
    if start == b"[":
        return [json_records(path)]
    if start == b"{":
        return [json_lines(path)]
    if head and tarfile.is_tarfile(path):
        return [TarShard(path, ignored)]
    raise UsageError(f"{path} begins with {head[:12]!r}. Expected {KNOWN}.")


def _open_folder(path: Path, ignored: Collection[str]) -> Sequence[RecordSource]:
    unread = {*METADATA_COLUMNS, *ignored}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return [open_saved_dataset(path, IMAGE_COLUMNS, unread)]
    if files := sorted(path.glob("*.tar")):
        return [TarShard(file, ignored) for file in files]
    if files := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return [open_parquet(files, IMAGE_COLUMNS, unread)]
    if files := sorted(path.glob("*.jsonl")):
        return [json_lines(file) for file in files]
    raise UsageError(
        f"The folder {path} has no state.json, no *.tar, *.parquet or *.jsonl. Expected {KNOWN}; name a .json itself."
    )
