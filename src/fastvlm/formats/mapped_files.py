"""Watches mapped weight files, because a file that changes also changes the weights that are mapped from it.

Reading a mapped page of a truncated file ends the process by SIGBUS, which Python cannot handle. A private copy would
cost the memory that mapping saves, and file locks are only advisory. So size and modification time are compared at each
engine step: one fstat(2) per file, about a microsecond. A truncation during a step still ends the process.

The open file is checked, not its name: a file that is replaced by renaming stays intact for open descriptors.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError


@dataclass(frozen=True)
class _Opened:
    path: Path
    descriptor: int
    num_bytes: int
    written_ns: int


class MappedFiles:
    """The files that a model's weights are mapped from, held open.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._opened = [opened for path in self._paths if (opened := _open(path)) is not None]
        weakref.finalize(self, _close, [opened.descriptor for opened in self._opened])

    def check(self) -> None:
        """Compare each file with its initial state.

        Raises:
            CheckpointError: a file was truncated or written to.
        """
        for opened in self._opened:
            now = os.fstat(opened.descriptor)
            if (now.st_size, now.st_mtime_ns) != (opened.num_bytes, opened.written_ns):
                raise CheckpointError(
                    f"{opened.path} was written to while its weights were in use: it had {opened.num_bytes} bytes and "
                    f"has {now.st_size} now. The weights in memory are no longer those that were opened. Restore the "
                    "file and start again; to replace a checkpoint, write a new folder, or rename new files over the "
                    "old ones."
                )

    def __deepcopy__(self, _memo: dict[int, Any]) -> MappedFiles:
        return self  # copies of a model share its files

    def __reduce__(self) -> tuple[type[MappedFiles], tuple[tuple[Path, ...]]]:
        return type(self), (self._paths,)


def _open(path: Path) -> _Opened | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None  # cannot be watched; it was read a moment ago
    found = os.fstat(descriptor)
    return _Opened(path, descriptor, found.st_size, found.st_mtime_ns)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
