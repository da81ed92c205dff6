"""SHA-256 checksums of a checkpoint folder, written with it and verified on request.

The file is ``SHA256SUMS`` in the format of sha256sum: ``sha256sum -c SHA256SUMS`` gives the same verdict without this
package, transformers and the Hub ignore the file, and one file covers weights, tokenizer, configuration and template.
A digest in the metadata of a safetensors file could not cover the other files, nor the header that contains it.

Opening a checkpoint does not hash it: that would read all weights, which are otherwise mapped and read when needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fastvlm.errors import CheckpointError
from fastvlm.hub.files import CHECKSUM_FILE

__all__ = ["CHECKSUM_FILE", "FileCheck", "FileState", "verify_checksums", "write_checksums"]

FileState = Literal["good", "changed", "missing", "not_listed"]
Progress = Callable[[int, int], None]

_NOT_COVERED = frozenset({CHECKSUM_FILE, "README.md"})  # the card is text for people, who may edit it
_LINE = re.compile(r"(?P<escaped>\\)?(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_ESCAPES = {"n": "\n", "r": "\r"}
_CHUNK_BYTES = 1 << 20
_MAX_SUMS_BYTES = 1 << 20


@dataclass(frozen=True)
class FileCheck:
    """One file of a checkpoint and what its checksum says.

    Args:
        name: path relative to the folder, with forward slashes.
        state: "good"; "changed" (other bytes than when the folder was written); "missing" (listed, and not there);
            "not_listed" (there, and not in the list).
    """

    name: str
    state: FileState


def write_checksums(folder: Path) -> None:
    """Write ``SHA256SUMS`` into `folder`, over every file in it and its subfolders but its card (``README.md``)."""
    lines = [_line(name, _digest(folder / name)) for name in _covered_files(folder)]
    (folder / CHECKSUM_FILE).write_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def verify_checksums(folder: Path, progress: Progress | None = None) -> list[FileCheck]:
    """Compare every file of `folder` with its ``SHA256SUMS``; each file is read whole.

    Args:
        folder: a checkpoint folder.
        progress: called with (bytes hashed, bytes in all).

    Returns:
        One entry for each file that is listed or there, sorted by name.

    Raises:
        CheckpointError: there is no ``SHA256SUMS``, it is not in sha256sum's format, or a file cannot be read.
    """
    listed = _listed(folder / CHECKSUM_FILE)
    present = set(_covered_files(folder)) | {name for name in listed if (folder / name).is_file()}
    hashed = [name for name in sorted(listed) if name in present]
    total = sum((folder / name).stat().st_size for name in hashed)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    states: dict[str, FileState] = dict.fromkeys(present - listed.keys(), "not_listed")
    states |= dict.fromkeys(listed.keys() - present, "missing")
    for name in hashed:
        states[name] = "good" if _digest(folder / name, on_bytes) == listed[name] else "changed"
    return [FileCheck(name, states[name]) for name in sorted(states)]


def _covered_files(folder: Path) -> list[str]:
    return sorted(_names_in(folder))


def _names_in(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if name.as_posix() not in _NOT_COVERED and not is_hidden and file.is_file():
            yield name.as_posix()


def _digest(file: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    found = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(chunk)
                on_bytes(len(chunk))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Check permissions and disk.") from error
    return found.hexdigest()


def _line(name: str, digest: str) -> str:
    """A line of sha256sum; a backslash in front says that line ends and backslashes in the name are escaped."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _listed(file: Path) -> dict[str, str]:
    """Name -> digest in lower case."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_SUMS_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.parent} has no {file.name}, so nothing is known about how its files should be. fastvlm convert, "
            f"quantize and train write it; in a folder that you trust, make one with: sha256sum * > {file.name}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    if len(raw) > _MAX_SUMS_BYTES:
        raise CheckpointError(
            f"{file} is larger than {_MAX_SUMS_BYTES} bytes; it is not a list of a checkpoint's files."
        )
    lines = raw.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
    listed = dict(_parsed(file, number, line) for number, line in enumerate(lines, start=1) if line)
    if not listed:
        raise CheckpointError(f"{file} is empty. Fetch it again from the checkpoint's source.")
    return {name: digest for name, digest in listed.items() if name not in _NOT_COVERED}


def _parsed(file: Path, number: int, line: str) -> tuple[str, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise CheckpointError(f"{file}, line {number}, is not in sha256sum's format ('DIGEST  NAME'): {line[:80]!r}.")
    name = found["name"]
    if found["escaped"]:
        name = re.sub(r"\\(.)", lambda pair: _ESCAPES.get(pair[1], pair[1]), name)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"{file}, line {number}, names {name!r}, which is outside the folder.")
    return path.as_posix(), found["digest"].lower()
