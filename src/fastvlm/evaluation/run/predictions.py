"""File of predictions, appended reply by reply, from which a later run resumes.

One line a reply, written with a single call and flushed before the next question is asked: whatever ends the process,
the file holds whole lines and at most one half. That half is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fastvlm.errors import DataError, UsageError
from fastvlm.storage.locks import CAN_LOCK, lock_now
from fastvlm.storage.write_errors import clear_write_errors

_APPENDED = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Prediction:
    """The model's reply to a question, or the error.

    Args:
        id: the question's.
        reply: without white space around it; empty where `error` is set.
        finish_reason: ``"stop"``, ``"length"``, or ``"error"``.
        error: what failed; such questions are asked again by the next run.
    """

    id: str
    reply: str
    finish_reason: str
    error: str | None = None


class PredictionFile:
    """Predictions of a run by question id; in memory only if `path` is None.

    Use it as a context; no other process can meanwhile.

    Raises:
        DataError: a line is not a prediction, or the file cannot be written.
        StorageError: the disk is full or failed.
        UsageError: the file cannot be written to, or another process has it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.known, self.num_cut_bytes = path, dict[str, Prediction](), 0
        self._handle: int | None = None

    def __enter__(self) -> PredictionFile:
        if self.path is not None:
            with clear_write_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, _APPENDED, 0o644)
            try:
                self._begin(self._handle, self.path)
            except BaseException:
                self._close(self._handle)
                raise
        return self

    def _begin(self, handle: int, path: Path) -> None:
        if CAN_LOCK and not lock_now(handle, path):
            raise UsageError(
                f"{path} is being written by another run. Wait until that has ended, or name another --out."
            )
        with clear_write_errors(path):
            self._read(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None and self.path is not None:
            handle = self._handle
            try:
                with clear_write_errors(self.path):
                    os.fsync(handle)
            finally:
                self._close(handle)

    def _close(self, handle: int) -> None:
        self._handle = None
        os.close(handle)

    def is_answered(self, identity: str) -> bool:
        """True if there is a reply, not an error."""
        return identity in self.known and self.known[identity].error is None

    def add(self, prediction: Prediction, about: dict[str, Any]) -> None:
        """Store a prediction, with `about` as further fields. Raises DataError if it cannot be written."""
        if self._handle is not None:
            line = json.dumps({**asdict(prediction), **about}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            self._write(self._handle, line)
        self.known[prediction.id] = prediction

    def _write(self, handle: int, line: bytes) -> None:
        try:
            written = os.write(handle, line)
            reason = f"{written} of {len(line)} bytes were taken"
        except OSError as error:
            written, reason = 0, str(error.strerror)
        if written != len(line):
            raise DataError(
                f"{self.path} cannot be written to ({reason}). Make room, and give the same command again: what was "
                "answered before is kept."
            )

    def _read(self, path: Path) -> None:
        """Read the predictions of an earlier run; cut off an incomplete last line."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        self.num_cut_bytes = len(data) - whole
        if self.num_cut_bytes and self._handle is not None:
            os.ftruncate(self._handle, whole)
        for prediction in _parsed(path, data[:whole]):
            self.known[prediction.id] = prediction


def _parsed(path: Path, data: bytes) -> Iterator[Prediction]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield _prediction(path, number, line)


def _prediction(path: Path, number: int, line: bytes) -> Prediction:
    try:
        row = json.loads(line)
        return Prediction(str(row["id"]), str(row["reply"]), str(row["finish_reason"]), row.get("error"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {number} is not a prediction ({type(error).__name__}: {error}). Fix or remove the line, or "
            "start over with --restart."
        ) from error
