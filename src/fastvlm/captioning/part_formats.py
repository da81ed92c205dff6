"""Formats of output parts: JSON Lines, Parquet, WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fastvlm.captioning.rows import COLUMNS, Sample
from fastvlm.captioning.tables import as_json
from fastvlm.errors import DataError
from fastvlm.images.formats import identify
from fastvlm.records.json_files import stream_json_lines
from fastvlm.records.tables import opened_parquet, pyarrow_or_extra
from fastvlm.records.tar_members import key_and_kind, tar_members

_MAX_LINE_BYTES = 1 << 27


class PartFormat(Protocol):
    """How parts are written and read."""

    @property
    def suffix(self) -> str:
        """The end of a part's name."""
        ...

    @property
    def has_images(self) -> bool:
        """Whether samples are written with their images."""
        ...

    def check(self) -> None:
        """Raise MissingExtraError if a package is missing."""
        ...

    def write(self, stream: BinaryIO, samples: Iterable[Sample]) -> None:
        """Write a whole part."""
        ...

    def read(self, part: Path, num_prompts: int, *, is_index: bool = False) -> Iterator[Sample]:
        """The samples of a part; with `is_index` their lines may have the id and the error alone.

        Raises DataError: the part is damaged.
        """
        ...


class JsonLinesParts:
    """An object a line, one for each image and prompt."""

    suffix, has_images = ".jsonl", False

    def check(self) -> None:
        """Nothing is needed."""

    def write(self, stream: BinaryIO, samples: Iterable[Sample]) -> None:
        """Write a whole part."""
        for sample in samples:
            for line in sample.lines:
                stream.write(f"{as_json(line)}\n".encode())

    def read(self, part: Path, num_prompts: int, *, is_index: bool = False) -> Iterator[Sample]:
        """The samples of a part."""
        del is_index
        with part.open("rb") as file:
            yield from _samples(part, self._lines(part, file), num_prompts)

    @staticmethod
    def _lines(part: Path, file: BinaryIO) -> Iterator[Any]:
        for number, content, problem in stream_json_lines(file, _MAX_LINE_BYTES):
            if problem:
                raise _damaged(part, f"line {number}: {problem}")
            yield content


class ParquetParts:
    """A row for each image and prompt; the column `input` holds JSON."""

    suffix, has_images = ".parquet", False

    def check(self) -> None:
        """pyarrow is needed."""
        pyarrow_or_extra("caption")

    def write(self, stream: BinaryIO, samples: Iterable[Sample]) -> None:
        """Write a whole part."""
        pa = pyarrow_or_extra("caption")
        lines = [
            {**line, "input": None if line["input"] is None else as_json(line["input"])}
            for sample in samples
            for line in sample.lines
        ]
        kinds = dict.fromkeys(COLUMNS, pa.string()) | {"tokens": pa.int64(), "ms": pa.float64()}
        pa.parquet.write_table(pa.Table.from_pylist(lines, schema=pa.schema(kinds)), stream)

    def read(self, part: Path, num_prompts: int, *, is_index: bool = False) -> Iterator[Sample]:
        """The samples of a part."""
        with opened_parquet(part, str(part), "caption") as parquet:
            columns = ["id", "error"] if is_index else list(COLUMNS)
            lines = (line for batch in parquet.iter_batches(columns=columns) for line in batch.to_pylist())
            yield from _samples(part, map(_with_input, lines), num_prompts)


class WebDatasetParts:
    """A tar with the image, the first prompt's text (.txt) and all lines (.json) of each sample.

    The key is the sample's number in its part; the id is in the JSON. A sample with an error has no text, and one
    whose image could not be read no image.
    """

    suffix, has_images = ".tar", True

    def check(self) -> None:
        """Nothing is needed."""

    def write(self, stream: BinaryIO, samples: Iterable[Sample]) -> None:
        """Write a whole part."""
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for number, sample in enumerate(samples):
                for kind, content in _members(sample):
                    member = tarfile.TarInfo(f"{number:09d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def read(self, part: Path, num_prompts: int, *, is_index: bool = False) -> Iterator[Sample]:
        """The samples of a part, with their images unless `is_index`."""
        with part.open("rb") as file:
            for _, group in groupby(tar_members(file, str(part)), lambda member: key_and_kind(member.name)[0]):
                image, content = b"", b""
                for member in group:
                    kind = key_and_kind(member.name)[1]
                    if kind == "txt" or (kind != "json" and is_index):
                        continue
                    file.seek(member.offset_data)
                    if kind == "json":
                        content = file.read(member.size)
                    else:
                        image = file.read(member.size)
                yield self._sample(part, content, image, num_prompts)

    @staticmethod
    def _sample(part: Path, content: bytes, image: bytes, num_prompts: int) -> Sample:
        try:
            stored = json.loads(content)
            (sample,) = _samples(part, stored["lines"], num_prompts)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(part, repr(error)) from error
        return Sample(sample.id, sample.lines, image, stored.get("sidecar", ""))


FORMATS: Mapping[str, PartFormat] = {
    "jsonl": JsonLinesParts(),
    "parquet": ParquetParts(),
    "webdataset": WebDatasetParts(),
}


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of a sample's members."""
    if sample.image:
        yield _image_kind(sample.image), sample.image
    text = sample.lines[0]["text"]
    if text is not None:
        yield "txt", text.encode("utf-8", "replace")
    yield "json", as_json({"id": sample.id, "lines": list(sample.lines)}).encode()


def _image_kind(image: bytes) -> str:
    """The suffix for an image's format."""
    try:
        name = (identify(image, "it").format or "bin").lower()
    except ValueError:  # an image that could not be decoded is kept all the same
        return "bin"
    return {"jpeg": "jpg", "jpeg2000": "jp2"}.get(name, name)


def _with_input(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "input": json.loads(line["input"])} if line.get("input") else line


def _samples(part: Path, lines: Iterable[Any], num_prompts: int) -> Iterator[Sample]:
    """Groups of `num_prompts` lines with the same id."""
    rest = iter(lines)
    while group := list(islice(rest, num_prompts)):
        try:
            ids = {line["id"] for line in group} if len(group) == num_prompts else set()
            is_whole = len(ids) == 1 and all("error" in line for line in group)
        except (TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise _damaged(part, f"expected {num_prompts} lines of one image, got {group!r:.200}")
        yield Sample(str(ids.pop()), group)


def _damaged(part: Path, reason: str) -> DataError:
    return DataError(f"{part} is not a part of this run's output ({reason}). Remove it, or name another --out.")
