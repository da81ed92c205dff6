"""Readable errors for failed writes: the operating system's reason, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvlm.errors import FastVlmError, StorageError, UsageError

_FULL = "Free some space, or name a place on another disk."
_ELSEWHERE = "Name a place elsewhere."
_FOLDER_IN_THE_WAY = "A folder has that name, and a file is expected. Name another file."
_EDQUOT = getattr(errno, "EDQUOT", errno.ENOSPC)  # Windows has no quota of that name
# Errors of the disk: the command was right, and the same command works once the disk does.
_DISK_FAILED = {
    errno.ENOSPC: _FULL,
    _EDQUOT: _FULL,
    errno.EFBIG: "The file system takes no file of that size. Name a place on another disk.",
    errno.EIO: "The disk failed; the system's log says more. Name a place on another disk.",
    None: _FULL,
}
# Errors of the place that was named.
_PLACE_IS_WRONG: dict[int | None, str] = {
    errno.EROFS: "It is on a read-only file system. " + _ELSEWHERE,
    errno.EACCES: "Change its permissions, or name a place elsewhere.",
    errno.EPERM: "Change its permissions, or name a place elsewhere.",
    errno.EISDIR: _FOLDER_IN_THE_WAY,
    errno.ENOTDIR: "A part of that path is a file. Name a path whose folders exist.",
    errno.ENOENT: "Make its folder first, or name another place.",
    errno.EEXIST: "Something has that name. Name another place, or move it away.",
    errno.ENOTEMPTY: "Something has that name. Name another place, or move it away.",
    errno.ENAMETOOLONG: "Name a shorter one.",
}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers put the system's number into their text
# torch's writer says only that it could not go on.
_TORCH_ERROR = re.compile(r"PytorchStreamWriter failed|unexpected pos|iostream error|cannot be opened", re.I)


@contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turn errors of writing `target` inside into StorageError or UsageError; let all others pass.

    An OSError about a file outside `target`, such as one that could not be read, passes too.

    Raises:
        StorageError: the disk is full or failed.
        UsageError: the place cannot be written to: read-only, no permission, a folder in place of a file.
    """
    try:
        yield
    except FastVlmError:
        raise
    except Exception as error:
        if reason_of(error) is None or not _is_about(error, target):
            raise
        raise write_error(target, error) from error


def write_error(target: Path, error: Exception) -> FastVlmError:
    """The StorageError or UsageError that says why `target` could not be written."""
    number = _number_of(error)
    message = f"{target} cannot be written: {reason_of(error) or error}."
    if number in _DISK_FAILED:
        return StorageError(f"{message} {_DISK_FAILED[number]}")
    return UsageError(f"{message} {_PLACE_IS_WRONG.get(number, _ELSEWHERE)}")


def reason_of(error: Exception) -> str | None:
    """The system's reason in an error of Python, of torch or of a Rust library; None if it is not about a file."""
    number = _number_of(error)
    if number is not None:
        return os.strerror(number)
    return str(error).splitlines()[0].rstrip(".") if _TORCH_ERROR.search(str(error)) else None


def _number_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_ERROR.search(str(error))
    return int(found[1]) if found else None


def _is_about(error: Exception, target: Path) -> bool:
    """False for an OSError about a file that is neither `target`, in it, nor one of its temporary files."""
    names = [getattr(error, "filename", None), getattr(error, "filename2", None)]  # two of a copy that failed
    found = [Path(name).absolute() for name in names if isinstance(name, (str, os.PathLike))]
    return not found or any(_belongs_to(place, target.absolute()) for place in found)


def _belongs_to(place: Path, target: Path) -> bool:
    parent = target.parent
    if place == parent or not place.is_relative_to(parent):
        return place == parent
    first = place.relative_to(parent).parts[0]
    return first == target.name or first.startswith(f".{target.name}.")
