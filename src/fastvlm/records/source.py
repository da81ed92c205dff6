"""Record sources: records by index, read from their files lazily.

No file is kept open: each read opens its file, so a source can be pickled, and used by many worker processes at once.
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
        file: where it was found.
        line: the line it begins on, from 1; in Parquet its row.
        number: its position among the file's records, from 1.
        content: the value; None if `problem` says why it could not be read.
        key: its name, where the file holds an object of records.
        problem: what is wrong with it.
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
        folder: where the records' relative image paths begin, unless the user says otherwise.
    """

    folder: Path

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str:
        """The record's place for messages to people: ``train.jsonl:17``."""
        ...

    def record(self, index: int) -> Any:
        """The record's value; images that are large are objects with `read`, which fetch their bytes when asked.

        Raises:
            DataError: it cannot be read; the text is the reason alone, without the origin.
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
