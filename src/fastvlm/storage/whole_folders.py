"""Atomic folder writes: complete or absent; the next run removes what a killed one left.

``.NAME.part``  being written
``.NAME.old``   the whole folder that is being replaced
``.NAME.gone``  being removed
``.NAME.lock``  locked while a process does any of that
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvlm.errors import UsageError
from fastvlm.storage.locks import CAN_LOCK, exclusive_lock
from fastvlm.storage.whole_files import part_of, sync_folder
from fastvlm.storage.write_errors import clear_write_errors

_LEFTOVERS = ("*.part", "*.gone")


@contextmanager
def whole_folder(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Temporary folder that is renamed to `target` at the end, synced to the disk, or removed after any error.

    Args:
        target: an absolute path whose parent exists.
        replaces: True to replace an existing folder, which is an error otherwise.

    Raises:
        UsageError: another process writes `target`, it exists, or its parent cannot be written.
        StorageError: the disk is full or failed.
    """
    with exclusive_lock(target.with_name(f".{target.name}.lock"), target), clear_write_errors(target):
        work = part_of(target)
        _tidy(target)
        work.mkdir()
        try:
            yield work
            if not replaces and target.exists():
                raise UsageError(f"{target} was created meanwhile, and nothing is overwritten. Name another folder.")
            name_folder(work, target)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(work, ignore_errors=True)
            raise


def _tidy(target: Path) -> None:
    """Remove what a killed run left; restore a complete folder that it was about to replace."""
    work, old = part_of(target), _old(target)
    if work.exists() and not CAN_LOCK:
        raise UsageError(f"{work} exists: another run writes {target}, or was killed. If it was killed, remove {work}.")
    _remove(work)
    _remove(_gone(target))
    if old.exists() and not target.exists():
        old.rename(target)
    elif old.exists():
        remove_folder(old)


def name_folder(work: Path, target: Path) -> None:
    """Sync the folder `work` to the disk and rename it to `target`, replacing an existing one.

    At every moment `target` is a complete folder or absent.
    """
    _sync_tree(work)
    old = _old(target)
    if target.exists():
        target.rename(old)
    work.rename(target)
    sync_folder(target.parent)
    if old.exists():
        remove_folder(old)


def remove_folder(folder: Path) -> None:
    """Remove `folder`: renamed first, so that it never exists incomplete under its own name."""
    gone = _gone(folder)
    _remove(gone)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in `folder`. The caller holds its lock."""
    for old in folder.glob(".*.old"):
        target = old.with_name(old.name.removesuffix(".old")[1:])
        if target.exists():
            remove_folder(old)
        else:
            old.rename(target)
    for pattern in _LEFTOVERS:
        for leftover in folder.glob(f".{pattern}"):
            _remove(leftover)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _gone(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.lstrip('.').removesuffix('.old')}.gone")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync_file(Path(parent, name))
        sync_folder(Path(parent))


def _sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
