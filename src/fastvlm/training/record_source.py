"""What the readers of all formats have in common: records by number, read from their files when they are asked for.

No file is kept open: each read opens its file, so a source can be pickled, and used by many worker processes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import DataError

__all__ = ["BadRecordError", "RecordSource", "read_bytes"]


class BadRecordError(DataError):
    """A record that cannot be trained on: ``ORIGIN: REASON``.

    One argument is enough, because a DataLoader raises again with the text alone what its workers raised.
    """

    def __init__(self, text: str, origin: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.origin, self.reason = origin, reason or text

    @classmethod
    def at(cls, origin: str, error: Exception) -> BadRecordError:
        """With the origin of the record that `error` tells about."""
        return cls(f"{origin}: {error}", origin, str(error))

    def __reduce__(self) -> tuple[type[BadRecordError], tuple[str, str, str]]:
        return type(self), (str(self), self.origin, self.reason)


class RecordSource(Protocol):
    """Records of one file, or of files that belong together.

    Attributes:
        folder: where the records' relative image paths begin, unless the user says otherwise.
    """

    folder: Path

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str:
        """Where the record stands, for messages to people: ``train.jsonl:17``."""
        ...

    def record(self, index: int) -> dict[str, Any]:
        """What stands there; images that are large are objects with `read`, which fetch their bytes when asked.

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
