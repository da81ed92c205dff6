"""Atomic file writes: to a temporary file in the same folder, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fastvlm.storage.locks import CAN_LOCK, open_alone
from fastvlm.storage.write_errors import clear_write_errors

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # file systems that sync files only


def write_file(file: Path, content: str | bytes, *, is_new: bool = False) -> None:
    """Write `content` (text as UTF-8) to `file` as :func:`whole_file` does."""
    with whole_file(file, is_new=is_new) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(file: Path, *, is_new: bool = False) -> Iterator[BinaryIO]:
    """Binary stream whose content replaces `file` at the end, atomically, also if the power fails.

    Links are followed. A device or a pipe is written directly. Two processes that write the same file take turns.

    Args:
        file: its folder exists.
        is_new: refuse a file that exists.

    Raises:
        StorageError: the disk is full or failed.
        UsageError: a read-only place, no permission, a folder in place of the file, or a file with `is_new`.
    """
    with clear_write_errors(file):
        mode = _mode_of(file)
        if mode is not None and not stat.S_ISREG(mode):
            with file.open("wb") as stream:  # IsADirectoryError for a folder
                yield stream
            return
    place = Path(os.path.realpath(file))
    with clear_write_errors(place):
        if is_new and mode is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
        if mode is not None and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        with _written_beside(place, mode, is_new=is_new) as stream:
            yield stream
        sync_folder(place.parent)


def part_of(place: Path) -> Path:
    """The temporary file of `place`; one left by a killed process is reused by the next."""
    return place.with_name(f".{place.name}.part")


def _mode_of(place: Path) -> int | None:
    try:
        return place.stat().st_mode
    except FileNotFoundError:
        return None


@contextmanager
def _written_beside(place: Path, mode: int | None, *, is_new: bool) -> Iterator[BinaryIO]:
    part = part_of(place)
    stream = os.fdopen(open_alone(part, place), "wb")
    try:
        yield stream
        stream.flush()
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(stream.fileno(), stat.S_IMODE(mode))
        os.fsync(stream.fileno())
        if not CAN_LOCK:  # Windows renames no open file
            stream.close()
        _rename(part, place, is_new=is_new)
    except BaseException:  # Ctrl-C too
        if CAN_LOCK:  # remove it while it is locked, so that it is not the next writer's
            _drop(part)
        with suppress(OSError):  # of what is still in the buffer
            stream.close()
        if not CAN_LOCK:
            _drop(part)
        raise
    stream.close()


def _drop(part: Path) -> None:
    with suppress(OSError):
        part.unlink()


def _rename(part: Path, place: Path, *, is_new: bool) -> None:
    if not is_new:
        part.replace(place)
        return
    try:
        os.link(part, place)  # unlike renaming, this fails if another process has just made the file
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if place.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
        part.rename(place)
    else:
        part.unlink()


def sync_folder(folder: Path) -> None:
    """Sync the directory `folder` to the disk."""
    if os.name == "nt":  # Windows cannot open folders, and writes names at once
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
