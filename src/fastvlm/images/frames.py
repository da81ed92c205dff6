"""Frames, the images of a PDF, video or multi-frame image file: which of them are wanted, and what they may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images.limits import ImageLimits

FrameKind = Literal["image", "page", "frame"]
SAMPLINGS = ("change", "time")
T = TypeVar("T")
_RANGES = re.compile(r"\s*\d{1,6}(\s*-\s*\d{1,6})?\s*(,\s*\d{1,6}(\s*-\s*\d{1,6})?\s*)*")
_MAX_NUMBERS = 1000  # of pages that a text may ask for, before the limit of the reader is known


@dataclass(frozen=True)
class Frame:
    """One image of a file.

    Args:
        image: RGB, upright.
        kind: "image" of an image file, "page" of a PDF, "frame" of a video.
        number: its place in the file, from 1.
        count: how many the file has; None where they are too many to count.
        time_s: seconds since the first frame of a video; None for the other kinds.
    """

    image: Image.Image
    kind: FrameKind = "image"
    number: int = 1
    count: int | None = 1
    time_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All but the image, for JSON; the time rounded to a millisecond."""
        time_s = None if self.time_s is None else round(self.time_s, 3)
        return {"kind": self.kind, "number": self.number, "count": self.count, "time_s": time_s}


@dataclass(frozen=True)
class Selection:
    """Which images of a file are wanted.

    Args:
        pages: numbers from 1, of the pages of a PDF or the frames of an image file. None for all pages, if there are
            at most `max_frames`, and for the first frame.
        max_frames: the most pages, or frames of a video, that are taken.
        sampling: of a video, "change" or "time"; see :mod:`fastvlm.images.video`.

    Raises:
        UsageError: a number out of range, an unknown word.
    """

    pages: tuple[int, ...] | None = None
    max_frames: int = 8
    sampling: str = "change"

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise UsageError(f"sampling is {self.sampling!r}; expected change or time.")
        if self.max_frames < 1:
            raise UsageError(f"max_frames is {self.max_frames}; expected 1 or more.")
        if self.pages is not None and (not self.pages or min(self.pages) < 1):
            raise UsageError(f"pages is {list(self.pages)}; expected numbers from 1, such as 1-3.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Selection:
        """The selection of which `values` is ``asdict``, also after JSON made lists of tuples."""
        pages = values["pages"]
        return cls(**{**values, "pages": None if pages is None else tuple(pages)})

    def numbers(self, count: int, name: str, limits: FrameLimits) -> tuple[int, ...]:
        """The pages wanted of a document with `count` pages; `name` is how errors call it.

        Raises:
            ImageError: a page that it does not have.
            ImageTooLargeError: more pages than may be taken.
        """
        if count < 1:
            raise ImageError(f"{name} has no pages. Pass a document with at least one.")
        most = self.max_frames if self.pages is None else limits.max_frames
        numbers = self.pages if self.pages is not None else tuple(range(1, min(count, most + 1) + 1))
        if len(numbers) > most:
            wanted = f"has {count} pages" if self.pages is None else f"is asked for {len(numbers)} pages"
            raise ImageTooLargeError(f"{name} {wanted}; the limit is {most}. Choose fewer pages, such as 1-{most}.")
        if max(numbers) > count:
            raise ImageError(f"{name} has no page {max(numbers)}; it has {count}.")
        return numbers


@dataclass(frozen=True)
class FrameLimits:
    """What the frames of one file may cost.

    Args:
        image: of an image file, of a frame's pixels, and of what comes as bytes or from a URL.
        max_file_bytes: size of a PDF or video that is read from a path.
        max_frames: pages or frames that are taken at once.
        max_packets: frames that a video may have.
        max_side_px: longer side of a page or frame; pages are rendered so, frames of a video reduced to it.
        timeout_s: seconds to decode a PDF or video.
        memory_bytes: address space of the process that does.
    """

    image: ImageLimits = field(default_factory=ImageLimits)
    max_file_bytes: int = 2**31
    max_frames: int = 16
    max_packets: int = 1_000_000
    max_side_px: int = 2048
    timeout_s: float = 60.0
    memory_bytes: int = 3 * 2**29

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FrameLimits:
        """The limits of which `values` is ``asdict``."""
        return cls(**{**values, "image": ImageLimits(**values["image"])})


def parse_pages(pages: str | int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Page numbers from ``"1-3,5"``, a number or several; None stays None. Raises UsageError for anything else."""
    if pages is None:
        return None
    if isinstance(pages, int):
        return (pages,)
    if not isinstance(pages, str):
        return tuple(pages)
    if not _RANGES.fullmatch(pages):
        raise UsageError(f"pages is {pages!r}; expected numbers and ranges from 1, such as 2 or 1-3,5.")
    numbers: list[int] = []
    for part in pages.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise UsageError(f"pages is {pages!r}; expected the lower page first, such as {high}-{low}.")
        if len(numbers) + high - low >= _MAX_NUMBERS:
            raise UsageError(f"pages is {pages!r}, which is more than {_MAX_NUMBERS} pages. Choose fewer.")
        numbers += range(low, high + 1)
    return tuple(numbers)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spaced; the first and last among them, the middle one if `count` is 1."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def clock(time_s: float) -> str:
    """``0:03.5``, or ``1:02:03.5`` from an hour on."""
    tenths = round(time_s * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def time_captions(images: Sequence[object]) -> list[str]:
    """For a prompt with `images`: one line for each video of which there are two or more frames, with their times."""
    runs: list[tuple[int, list[Frame]]] = []  # (place of the first, from 1; frames) of each video
    for place, image in enumerate(images, start=1):
        if not isinstance(image, Frame) or image.time_s is None:
            continue
        first, frames = runs[-1] if runs else (0, [])
        if first + len(frames) == place and frames and frames[-1].number < image.number:
            frames.append(image)
        else:
            runs.append((place, [image]))
    return [_caption(first, frames, len(images)) for first, frames in runs if len(frames) > 1]


def _caption(first: int, frames: Sequence[Frame], num_images: int) -> str:
    which = "The images" if len(frames) == num_images else f"Images {first} to {first + len(frames) - 1}"
    return f"{which} are frames of a video at {', '.join(clock(frame.time_s or 0.0) for frame in frames)}."
