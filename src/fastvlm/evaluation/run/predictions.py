"""File of predictions, appended reply by reply, from which a later run resumes.

Each reply is one line, written with a single call before the next question is asked. Whatever ends the process, the
file holds whole lines and at most one incomplete line, which is cut off when the file is opened again.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.storage.write_errors import clear_write_errors


@dataclass(frozen=True)
class Prediction:
    """The model's reply to a question, or the error.

    Args:
        id: the question's.
        reply: without white space around it; empty if `error` is set.
        finish_reason: ``"stop"``, ``"length"``, or ``"error"``.
        error: the failure; the next run asks such questions again.
    """

    id: str
    reply: str
    finish_reason: str
    error: str | None = None


class PredictionFile:
    """Context manager for the predictions of a run by question id; in memory only if `path` is None.

    The caller makes sure that no other process writes to the file.

    Raises:
        DataError: a line is not a prediction, or the file cannot be written.
        StorageError: the disk is full or failed.
        UsageError: the file cannot be written to.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.known, self.num_cut_bytes = path, dict[str, Prediction](), 0
        self._file: io.FileIO | None = None

    def __enter__(self) -> PredictionFile:
        if self.path is not None:
            with clear_write_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    self._read(self.path)
                self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self.path is not None:
            with self._file as file, clear_write_errors(self.path):
                os.fsync(file.fileno())

    def is_answered(self, identity: str) -> bool:
        """True if there is a reply, not an error."""
        return identity in self.known and self.known[identity].error is None

    def add(self, prediction: Prediction, about: dict[str, Any]) -> None:
        """Store a prediction, with `about` as further fields. Raises DataError if it cannot be written."""
        if self._file is not None:
            line = json.dumps({**asdict(prediction), **about}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            try:
                num_written = os.write(self._file.fileno(), line)
                reason = f"{num_written} of {len(line)} bytes were taken"
            except OSError as error:
                num_written, reason = 0, str(error.strerror)
            if num_written != len(line):
                raise DataError(
                    f"{self.path} cannot be written to ({reason}). Make room, and give the same command again: what "
                    "was answered before is kept."
                )
        self.known[prediction.id] = prediction

    def _read(self, path: Path) -> None:
        """Read the predictions of an earlier run; cut off an incomplete last line."""
        data = path.read_bytes()
        num_whole = data.rfind(b"\n") + 1
        self.num_cut_bytes = len(data) - num_whole
        if self.num_cut_bytes:
            os.truncate(path, num_whole)
        for number, line in enumerate(data[:num_whole].splitlines(), 1):
            if line.strip():
                prediction = _parse(path, number, line)
                self.known[prediction.id] = prediction


def _parse(path: Path, number: int, line: bytes) -> Prediction:
    try:
        row = json.loads(line)
        return Prediction(str(row["id"]), str(row["reply"]), str(row["finish_reason"]), row.get("error"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {number} is not a prediction ({type(error).__name__}: {error}). Fix or remove the line, or "
            "start over with --restart."
        ) from error
