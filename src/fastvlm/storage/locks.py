"""Exclusive lock on a folder or file: ``flock`` on a small lock file.

The operating system releases the lock when its process ends, however it ends, so a leftover lock file blocks nobody.
The file names its owner for the error message of other processes. Without ``flock`` (Windows, some network file
systems) a warning says that concurrent writers are not detected.
"""

from __future__ import annotations

import errno
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fastvlm.errors import UsageError
from fastvlm.storage.write_errors import clear_write_errors

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True

LOCK_NAME = ".fastvlm.lock"
_POLL_S = 0.05
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_OPEN = os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_held: set[int] = set()  # descriptors


def _let_go_in_child() -> None:
    """Close the locks in a forked child, which would otherwise keep them after its parent was killed."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Create `folder` with its parents and hold its lock while inside.

    Raises:
        UsageError: another process holds the lock, or the folder cannot be written.
        StorageError: the disk is full or failed.
    """
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / LOCK_NAME, folder):
        yield


@contextmanager
def exclusive_lock(lock: Path, target: Path) -> Iterator[None]:
    """Hold a lock on the file `lock` while inside; remove the file afterwards.

    Args:
        lock: the lock file; its folder exists.
        target: what the lock is for, named in errors.

    Raises:
        UsageError: another process holds the lock, or the file cannot be created.
        StorageError: the disk is full or failed.
    """
    with clear_write_errors(target):
        descriptor = _acquired(lock, target)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            _held.remove(descriptor)
            if CAN_LOCK:  # unlink before unlocking: a process that opens it in between sees that it has no name
                with suppress(OSError):
                    lock.unlink()
            os.close(descriptor)
            if not CAN_LOCK:
                with suppress(OSError):
                    lock.unlink()


@contextmanager
def brief_lock(lock: Path, target: Path, wait_s: float = 30.0) -> Iterator[None]:
    """As :func:`exclusive_lock`, for work of a moment: waits up to `wait_s` seconds for another process."""
    deadline_s = time.monotonic() + wait_s
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(exclusive_lock(lock, target))
                break
            except UsageError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)
        yield


def _acquired(lock: Path, target: Path) -> int:
    while True:
        descriptor = _opened(lock)
        try:
            if not lock_now(descriptor, target):
                raise UsageError(_in_use(descriptor, target))
            if _has_name(descriptor, lock):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it between our opening and locking it


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, _OPEN | os.O_RDWR, 0o666)
    except PermissionError:
        if not lock.is_file():
            raise
        return os.open(lock, (_OPEN | os.O_RDONLY) & ~os.O_CREAT)  # another user's, left by a killed run


def lock_now(descriptor: int, target: Path, *, waits: bool = False) -> bool:
    """Lock an open file; False if another process has the lock. Where nothing can be locked: True, with a warning."""
    if not CAN_LOCK:
        _warn(target, "this system has no flock")
        return True
    try:
        flock(descriptor, LOCK_EX if waits else LOCK_EX | LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        _warn(target, f"its file system has no locks ({error.strerror})")
    return True


def open_alone(file: Path, target: Path) -> int:
    """Descriptor of the temporary `file`, truncated; waits until no other process writes it."""
    while True:
        descriptor = os.open(file, _OPEN | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if CAN_LOCK:
                lock_now(descriptor, target, waits=True)
            if not CAN_LOCK or _has_name(descriptor, file):
                os.ftruncate(descriptor, 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _has_name(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write the owner into the lock file; a full disk is ignored."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode())


def _in_use(descriptor: int, target: Path) -> str:
    number, _, machine = os.read(descriptor, 300).decode(errors="replace").strip().partition(" ")
    owner = f"process {number}" if number.isdecimal() else "another process"
    if number == str(os.getpid()) and machine == platform.node():
        owner = f"this process ({number})"
    elif machine and machine != platform.node():
        owner += f" on {machine}"
    return f"{target} is being written by {owner}. Wait until it has ended, stop it, or name another place."


def _warn(target: Path, reason: str) -> None:
    warnings.warn(
        f"{target} cannot be locked: {reason}. Make sure that no other run writes there at the same time.",
        stacklevel=3,
    )
