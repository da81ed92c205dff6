"""Images as `ask` and `chat` open them, before the model: files, URLs, PDF pages, video frames."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli.choices import check_word
from fastvlm.cli.request import STDIN
from fastvlm.cli.terminal import Notes
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.images.frames import Frame

_SHOWN = 80  # characters of a data URI that a message repeats


@dataclass(frozen=True)
class FrameChoice:
    """Which pages or frames of files that hold several images; see :func:`fastvlm.open_frames`.

    Raises:
        UsageError: an unknown word, a number out of range, both pages and a frame.
    """

    pages: Annotated[
        str | None, typer.Option("--pages", metavar="PAGES", help="Of a PDF: 2 or 1-3,5; if not given, all up to 8.")
    ] = None
    frame: Annotated[
        int | None,
        typer.Option("--frame", metavar="N", help="Of a TIFF, GIF, WebP, APNG, AVIF or HEIC with several; from 1."),
    ] = None
    max_frames: Annotated[
        int, typer.Option("--max-frames", metavar="N", help="Most frames of a video, and pages without --pages; to 16.")
    ] = 8
    sampling: Annotated[
        str,
        typer.Option(
            "--sample", metavar="RULE", help="Frames of a video: change skips those that look alike, or time."
        ),
    ] = "change"

    def __post_init__(self) -> None:
        from fastvlm.images.frames import SAMPLINGS, parse_pages

        check_word("--sample", self.sampling, SAMPLINGS)
        if self.pages is not None and self.frame is not None:
            raise UsageError("--pages and --frame were both given. --pages is for PDFs, --frame for image files.")
        if self.frame is not None and self.frame < 1:
            raise UsageError(f"--frame is {self.frame}; expected 1 or more.")
        if not 1 <= self.max_frames <= 16:
            raise UsageError(f"--max-frames is {self.max_frames}; expected 1 to 16.")
        parse_pages(self.pages)


@dataclass(frozen=True)
class OpenedImages:
    """Images in the order of their sources.

    Args:
        frames: the images.
        names: of each, its source as given.
        opening_ms: what opening took.
    """

    frames: tuple[Frame, ...] = ()
    names: tuple[str, ...] = ()
    opening_ms: float = 0.0

    def as_list(self) -> list[dict[str, Any]]:
        """What the images are, for JSON."""
        return [
            {"source": shown_name(name), **frame.as_dict()} for name, frame in zip(self.names, self.frames, strict=True)
        ]


def open_sources(names: Sequence[str], choice: FrameChoice, notes: Notes) -> OpenedImages:
    """The images of all sources; a note says what was taken of a file that holds several.

    Raises:
        UsageError: nothing came through stdin; pages of a video.
        ImageError: not an image, too large, or at an address that does not answer.
        MissingExtraError: a PDF or video without the package that reads it.
    """
    from fastvlm.images.media import open_frames

    start_s = time.perf_counter()
    pages = choice.frame if choice.pages is None else choice.pages
    with notes.waiting("Reading images"):
        opened = [
            open_frames(_source(name), pages=pages, max_frames=choice.max_frames, sampling=choice.sampling)
            for name in names
        ]
    for name, frames in zip(names, opened, strict=True):
        if (taken := describe(frames)) is not None:
            notes.say(f"{shown_name(name)}: {taken}.")
    return OpenedImages(
        tuple(frame for frames in opened for frame in frames),
        tuple(name for name, frames in zip(names, opened, strict=True) for _ in frames),
        1000 * (time.perf_counter() - start_s),
    )


def _source(name: str) -> str | bytes:
    """What `open_frames` takes for an image as typed: bytes for stdin and for pipes, such as the shell's <(...)."""
    if name == STDIN:
        return _read_stdin()
    return Path(name).read_bytes() if Path(name).is_fifo() else name


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read()
    if not data:
        raise UsageError("'-' reads an image from stdin, but nothing came. Try: fastvlm ask - \"...\" < cat.png")
    return data


def describe(frames: Sequence[Frame]) -> str | None:
    """What was taken of a file; None for a file of one image."""
    from fastvlm.images.frames import clock

    first = frames[0]
    if first.kind == "frame":
        times = ", ".join(clock(frame.time_s or 0.0) for frame in frames)
        return f"{len(frames)} of {first.count} frames, at {times}"
    if first.count == 1:
        return None
    numbers = ", ".join(str(frame.number) for frame in frames)
    kind = "page" if first.kind == "page" else "frame"
    hint = "; --frame N takes another" if kind == "frame" else ""
    return f"{kind}{'s' if len(frames) > 1 else ''} {numbers} of {first.count or 'many'}{hint}"


def shown_name(name: str) -> str:
    """`name` for messages and JSON: a data URI is cut, because it is as long as its image."""
    return f"{name[:_SHOWN]}..." if name.lower().startswith("data:") and len(name) > _SHOWN else name
