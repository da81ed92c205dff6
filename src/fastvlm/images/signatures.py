"""What a file is by its first bytes: an image, a PDF or a video."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fastvlm.errors import MissingExtraError
from fastvlm.images.formats import AVIF_BRANDS, HEIF_BRANDS

MediaKind = Literal["image", "pdf", "video"]
HEAD_BYTES = 1024  # what :func:`media_kind` looks at
_BEFORE_PDF = b"\xef\xbb\xbf\0\t\n\f\r "  # a byte order mark and white space
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip")  # files from before `ftyp`
_TS_PACKET_BYTES = 188  # ISO/IEC 13818-1


def media_kind(head: bytes) -> MediaKind:
    """The kind of a file that begins with `head`; "image" for everything that is neither a PDF nor a video."""
    if head.lstrip(_BEFORE_PDF).startswith(b"%PDF-"):
        return "pdf"
    return "image" if video_format(head) is None else "video"


def video_format(head: bytes) -> str | None:
    """FFmpeg's name of a video's container; None for a file that is none, or of a kind that is not read."""
    if head[4:8] == b"ftyp":
        return None if head[8:12] in HEIF_BRANDS | AVIF_BRANDS else "mov"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML: Matroska and WebM
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    sync = head[: 3 * _TS_PACKET_BYTES : _TS_PACKET_BYTES]
    return "mpegts" if sync == b"GGG" else None


def check_installed(kind: str) -> None:
    """Raise MissingExtraError, which names the extra, if nothing here reads files of this :data:`MediaKind`."""
    if kind == "pdf" and find_spec("pypdfium2") is None:
        raise MissingExtraError("pypdfium2", "documents", "Reading a PDF")
    if kind == "video" and find_spec("av") is None:
        raise MissingExtraError("av", "video", "Reading a video")


def file_head(source: Path | bytes) -> bytes:
    """The first :data:`HEAD_BYTES` of a file. Raises OSError."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(HEAD_BYTES)
