"""Record sources: records by index, read lazily.

Each read opens its file, so that a source can be pickled and used by many worker processes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import DataError


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Args:
        file: that has the record.
        line: its first line, from 1; in Parquet its row.
        number: its position among the file's records, from 1.
        content: the value; None if there is a `problem`.
        key: its name, if the file is an object of records.
        problem: why it could not be read, or "".
    """

    file: Path
    line: int
    number: int
    content: Any
    key: str = ""
    problem: str = ""


class RecordSource(Protocol):
    """Records of one file, or of files that belong together.

    Attributes:
        folder: where the records' relative image paths begin; may be replaced.
    """

    folder: Path

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str:
        """The record's file and line for messages: ``train.jsonl:17``."""
        ...

    def record(self, index: int) -> Any:
        """The record's value; images may be objects with `read`, which fetch the bytes.

        Raises:
            DataError: it cannot be read; the text is the reason, without the origin.
        """
        ...


def read_bytes(path: Path, offset_bytes: int, num_bytes: int) -> bytes:
    """A part of a file.

    Raises:
        DataError: the file is gone, or shorter than it was.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset_bytes)
            data = file.read(num_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read any more ({error.strerror})") from error
    if len(data) != num_bytes:
        raise DataError(f"{path} has become shorter since it was opened; start again")
    return data
