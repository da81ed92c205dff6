"""A PDF or video -> its selected frames, in the process that decodes them; see :mod:`fastvlm.images.media`."""

from __future__ import annotations

from pathlib import Path

from fastvlm.images.documents import pdf_pages
from fastvlm.images.frames import Frame, FrameLimits, Selection
from fastvlm.images.multiframe import image_frames
from fastvlm.images.signatures import file_head, media_kind
from fastvlm.images.video import video_frames


def decode_frames(source: Path | bytes, name: str, selection: Selection, limits: FrameLimits) -> list[Frame]:
    """The selected frames; `name` is how errors call the file. Raises ImageError, ImageTooLargeError."""
    kind = media_kind(file_head(source))
    if kind == "pdf":
        return pdf_pages(source, name, selection, limits)
    if kind == "video":
        return video_frames(source, name, selection, limits)
    return image_frames(source if isinstance(source, bytes) else source.read_bytes(), name, selection, limits)
