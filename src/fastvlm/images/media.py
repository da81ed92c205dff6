"""Anything that holds images -> those images: the pages of a PDF, some frames of a video, a frame of an image file.

    from fastvlm import FastVLM, open_frames

    FastVLM("mini").ask(open_frames("report.pdf", pages="1-3"), "What is the total?")

PDFs and videos are decoded in a process of their own that ends afterwards, within limits of time and memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images.data_uri import is_data_uri
from fastvlm.images.frames import Frame, FrameLimits, Selection, parse_pages
from fastvlm.images.multiframe import image_frames
from fastvlm.images.opening import encoded_bytes, open_image, source_name
from fastvlm.images.pool import ImagePool, frames_job, read_frames
from fastvlm.images.signatures import MediaKind, check_installed, file_head, media_kind

_DEFAULT_LIMITS = FrameLimits()


def open_frames(
    source: Any,
    *,
    pages: str | int | Sequence[int] | None = None,
    max_frames: int = 8,
    sampling: str = "change",
    limits: FrameLimits = _DEFAULT_LIMITS,
) -> list[Frame]:
    """The images in `source`, in their order.

    Args:
        source: as for :func:`fastvlm.open_image`; also a PDF (extra `documents`) or a video (extra `video`).
        pages: from 1, of a PDF or of an image file with several frames: ``"1-3,5"``, a number or several. None for all
            pages of a PDF with at most `max_frames`, and for the first frame of an image file.
        max_frames: the most pages (without `pages`) or frames of a video.
        sampling: of a video: "change" skips frames that look like the one before, "time" takes them evenly; see
            :mod:`fastvlm.images.video` for the exact rule.
        limits: what the source may cost.

    Raises:
        ImageError: as :func:`fastvlm.open_image`; a page that does not exist, an encrypted PDF, a video without frames.
        ImageTooLargeError: over the limits.
        MissingExtraError: nothing is installed that reads a PDF, or a video.
        UsageError: pages of a video, or of a PIL image or array; values that are not known.
    """
    selection = Selection(parse_pages(pages), max_frames, sampling)
    name = source_name(source)
    path = _path(source)
    content = None if path is not None else encoded_bytes(source, limits=limits.image)
    if path is None and content is None:
        _refuse_pages(selection, name, "decoded already")
        return [Frame(open_image(source, limits=limits.image))]
    kind = media_kind(_head(path, content))
    if kind == "image":
        data = encoded_bytes(source, limits=limits.image) if content is None else content
        assert data is not None  # noqa: S101 - a path has bytes
        return image_frames(data, name, selection, limits)
    if kind == "video":
        _refuse_pages(selection, name, "a video")
    return _decoded_elsewhere(kind, path, content or b"", name, selection, limits)


def _path(source: Any) -> Path | None:
    """The path of a file on this machine, if `source` is one."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = os.fsdecode(source)
    if is_data_uri(text) or "://" in text[:16]:
        return None
    try:
        return Path(text) if Path(text).is_file() else None
    except (OSError, ValueError):  # no name of a file: what opens images says why
        return None


def _head(path: Path | None, content: bytes | None) -> bytes:
    try:
        return file_head(content or b"" if path is None else path)
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be read ({error.strerror}). Check its permissions.") from error


def _refuse_pages(selection: Selection, name: str, what: str) -> None:
    if selection.pages is not None:
        raise UsageError(f"{name} is {what}: it has no pages or frames to choose by number. Leave that choice out.")


def _decoded_elsewhere(
    kind: MediaKind, path: Path | None, content: bytes, name: str, selection: Selection, limits: FrameLimits
) -> list[Frame]:
    """Frames decoded by a process of their own."""
    check_installed(kind)
    if path is not None and path.stat().st_size > limits.max_file_bytes:
        raise ImageTooLargeError(
            f"{name} has {path.stat().st_size} bytes; the limit is {limits.max_file_bytes}. Pass a smaller file, or "
            "FrameLimits(max_file_bytes=...)."
        )
    with closing(ImagePool(1, timeout_s=limits.timeout_s, memory_bytes=limits.memory_bytes)) as pool:
        return read_frames(*pool.answer(frames_job(path, name, selection, limits), content, name))
