"""Cameras, screens, network streams and video files -> live frames, by FFmpeg.

A source with a duration is a video: it is played at its own speed and ends. Any other is live: its frames come when
they come. A stream that breaks off after it has given frames is opened again, after growing pauses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastvlm.errors import ImageError
from fastvlm.images.frames import FrameLimits
from fastvlm.images.live_frames import LiveFrame
from fastvlm.images.video import upright_image, video_stream

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

SourceKind = Literal["camera", "screen", "stream", "video"]
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 15.0, 15.0
RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts to open a stream again
_MAX_DAMAGED = 300  # packets in a row, ten seconds of a camera
_HINTS = {
    "camera": "Check that it is connected, and that no other program uses it.",
    "screen": "Check DISPLAY, and that this user may read the screen.",
    "stream": "Check the address, and that the stream runs.",
    "video": "Pass a whole one.",
}
_LIMITS = FrameLimits()


class _BrokenOffError(ImageError):
    """A live source that has given frames and gives no more."""


@dataclass(frozen=True)
class VideoSource:
    """Something that FFmpeg reads.

    Args:
        kind: what it is.
        name: how messages call it.
        address: a device or URL; the path of a video file, which is opened here.
        container_format: FFmpeg's name of the device or container; None to recognize it.
        options: of FFmpeg's demuxer.
        limits: what a frame may cost.
    """

    kind: SourceKind
    name: str
    address: str | Path
    container_format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    limits: FrameLimits = _LIMITS

    def check(self) -> None:
        """Open and close it. Raises ImageError: cannot be opened, no video in it, larger than the limits."""
        with ExitStack() as stack:
            self._opened(stack)

    def frames(
        self, stop: threading.Event, warn: Callable[[str], None], *, is_paced: bool = True
    ) -> Generator[LiveFrame]:
        """Frames in their order, until the source ends or `stop` is set.

        Args:
            stop: ends the pauses, too.
            warn: called with one line each time a stream has broken off and is opened again.
            is_paced: True to give the frames of a video at its own speed, not as fast as they are decoded.

        Raises:
            ImageError: cannot be opened, is damaged, breaks off (a stream: and cannot be opened again).
        """
        number, attempts, start_s = 0, 0, time.monotonic()
        while True:
            try:
                for number, frame in enumerate(self._played(stop, is_paced, start_s), start=number + 1):  # noqa: B020
                    attempts = 0
                    yield LiveFrame(frame.decode, number, frame.time_s)
                return
            except ImageError as error:
                if self.kind != "stream" or not number or stop.is_set():
                    raise
                if attempts == len(RETRY_PAUSES_S):
                    raise ImageError(f"{error} Opened again {attempts} times in vain.") from error
                pause_s, attempts = RETRY_PAUSES_S[attempts], attempts + 1
                warn(f"{error} Opening it again in {pause_s:g} s ({attempts} of {len(RETRY_PAUSES_S)}).")
            stop.wait(pause_s)
            if stop.is_set():
                return

    def _played(self, stop: threading.Event, is_paced: bool, start_s: float) -> Iterator[LiveFrame]:
        """Frames from opening to end, not numbered; `start_s` is when the time of a live source began."""
        with ExitStack() as stack:
            container, stream = self._opened(stack)
            is_live = container.duration is None or self.kind in ("camera", "screen")
            aspect = stream.sample_aspect_ratio  # read now: the stream is gone once the container is closed
            first_s: float | None = None
            opened_s = time.monotonic()
            for frame in self._decoded(container, stream):
                time_s = time.monotonic() - start_s
                if not is_live:
                    shown_s = opened_s if frame.time is None else frame.time
                    first_s = shown_s if first_s is None else first_s
                    time_s = shown_s - first_s
                    if is_paced:
                        stop.wait(max(0.0, opened_s + time_s - time.monotonic()))
                if stop.is_set():
                    return
                yield LiveFrame(partial(upright_image, frame, aspect, self.name, self.limits), time_s=time_s)
            if is_live and not stop.is_set():
                raise _BrokenOffError(f"{self.name} has broken off.")

    def _opened(self, stack: ExitStack) -> tuple[InputContainer, VideoStream]:
        import av  # noqa: PLC0415 - an extra

        try:
            source = self.address
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            container = av.open(
                file,
                mode="r",
                format=self.container_format,
                options=dict(self.options),
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
            )
            stack.callback(container.close)
            return container, video_stream(container, self.name, self.limits)
        except ImageError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:  # FFmpeg's text repeats the whole URL: left out
            raise ImageError(f"{self.name} cannot be opened ({_reason(error)}). {_HINTS[self.kind]}") from error

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Decoded frames; damaged packets are skipped, as after a lost one, until there are too many in a row."""
        import av  # noqa: PLC0415 - an extra

        num_damaged = 0
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    num_damaged += 1
                    if num_damaged > _MAX_DAMAGED:
                        raise
                    continue
                num_damaged = 0
                yield from frames
        except av.error.FFmpegError as error:
            raise _BrokenOffError(f"{self.name} has broken off ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return "no answer in time" if reason == "Immediate exit requested" else reason
