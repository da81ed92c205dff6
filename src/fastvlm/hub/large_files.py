"""Download of a large file in pieces that survive the process: the next run continues where the last one ended.

huggingface_hub resumes a connection that breaks, but it removes what it has when its process ends. So the content of a
large file is written to a part file beside its place in the cache, and the client then finds it there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

from fastvlm.errors import CheckpointError
from fastvlm.storage.locks import CAN_LOCK, lock_now

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class LargeFile:
    """A file of a repository whose digest the Hub knows.

    Args:
        repository: ``owner/name``.
        commit: the commit's hash.
        name: the file's name.
        sha256: the digest of its content.
    """

    repository: str
    commit: str
    name: str
    sha256: str


def fetch_large_file(file: LargeFile, on_position: Callable[[int], None]) -> None:
    """Bring the content of `file` into the cache, whole and with the right digest; a part that is there is continued.

    If another process downloads the same content, this one waits for it. Nothing is done if the server does not name
    the content by its SHA-256, as the Hub does.

    Args:
        file: the file.
        on_position: called with the number of bytes that are there, after each piece.

    Raises:
        CheckpointError: other bytes arrived than the Hub states.
        OSError: an error of the Hub, the connection or the disk; the part file stays.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415  # half a second

    url = hf_hub_url(file.repository, file.name, revision=file.commit)
    found = get_hf_file_metadata(url)
    if found.etag != file.sha256 or not _SHA256.fullmatch(file.sha256):
        return  # a server that names contents in its own way: the client knows where it puts them
    place = _place(file.repository, file.sha256)
    part = place.with_name(f"{place.name}.fastvlm.incomplete")
    part.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b") as stream:
        if CAN_LOCK:
            lock_now(stream.fileno(), part, waits=True)
        if place.exists():  # another process was faster
            part.unlink(missing_ok=True)
            return
        watched = cast("BinaryIO", _Watched(stream, on_position))
        _continue(watched, found, file.name, may_sign_in=urlsplit(found.location).netloc == urlsplit(url).netloc)
        if (digest := _sha256(stream)) != file.sha256:
            part.unlink()
            raise CheckpointError(
                f"{file.name} of {file.repository!r} arrived damaged: its SHA-256 is {digest}, and the Hub states "
                f"{file.sha256}. It was removed: run it again."
            )
        os.fsync(stream.fileno())
        if CAN_LOCK:
            part.rename(place)
    if not CAN_LOCK:  # Windows renames no open file
        part.replace(place)


@dataclass(frozen=True)
class _Watched:
    """A stream that reports its position after each write."""

    stream: BinaryIO
    on_position: Callable[[int], None]

    def write(self, data: bytes) -> int:
        written = self.stream.write(data)
        self.on_position(self.stream.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _place(repository: str, sha256: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415

    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs" / sha256


def _continue(stream: BinaryIO, found: HfFileMetadata, name: str, *, may_sign_in: bool) -> None:
    """Append to `stream` what is missing of the file; the Hub's token is sent only if `may_sign_in`."""
    from huggingface_hub.file_download import http_get  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    start = stream.seek(0, os.SEEK_END)
    if found.size is not None and start > found.size:
        start = 0
        stream.seek(0)
        stream.truncate()
    headers = build_hf_headers()
    if not may_sign_in:
        headers.pop("authorization", None)
    size = found.size
    http_get(found.location, stream, resume_size=start, headers=headers, expected_size=size, displayed_filename=name)
    stream.flush()


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
