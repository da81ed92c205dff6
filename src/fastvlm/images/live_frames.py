"""Live frames: the newest frame of a source that goes on by itself, and the rule for which frames are new.

A reader thread decodes the source. Only its newest frame is kept; a frame that nobody took before the next one came is
dropped and counted, so memory stays the same however slow the consumer is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.images.video import has_changed

_END_WAIT_S = 5.0  # for a reader that is inside a call to FFmpeg


@dataclass(frozen=True)
class LiveFrame:
    """One frame of a live source.

    Args:
        decode: gives the RGB image; called at most once, because frames that are dropped are never converted.
        number: its place among all frames of the source, from 1.
        time_s: seconds since the first frame of a video, or since another source was opened.
        file: name of the image file in a folder; None for the other sources.
        arrived_s: ``time.monotonic()`` when it came.
    """

    decode: Callable[[], Image.Image]
    number: int = 1
    time_s: float = 0.0
    file: str | None = None
    arrived_s: float = field(default_factory=time.monotonic)

    @cached_property
    def image(self) -> Image.Image:
        """RGB, upright. Raises ImageError if it is damaged."""
        return self.decode()

    def as_dict(self) -> dict[str, Any]:
        """All but the image, for JSON; the time rounded to a millisecond."""
        return {"frame": self.number, "time_s": round(self.time_s, 3), "file": self.file}


class LatestFrame:
    """Iterator over the newest frames of `frames`, which a thread reads. Use it in a ``with`` statement.

    Args:
        frames: the source; its errors are raised where the frames are taken.
        stop: set when this object is left; `frames` should then end.
        stall_s: seconds without a frame after which the source counts as broken.

    Attributes:
        num_read: frames that have come.
        num_dropped: frames that were replaced by a newer one before they were taken.
    """

    def __init__(self, frames: Iterator[LiveFrame], stop: threading.Event, *, stall_s: float) -> None:
        self.num_read = self.num_dropped = 0
        self._frames, self._stop, self._stall_s = frames, stop, stall_s
        self._newest: LiveFrame | None = None
        self._error: BaseException | None = None
        self._has_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="fastvlm-frames", daemon=True)

    def __enter__(self) -> LatestFrame:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._reader.join(_END_WAIT_S)

    def __iter__(self) -> Iterator[LiveFrame]:
        """Until the source ends. Raises the source's error; ImageError if nothing comes for `stall_s`."""
        while (frame := self._take()) is not None:
            yield frame

    def _take(self) -> LiveFrame | None:
        with self._changed:
            is_awake = self._changed.wait_for(lambda: self._newest is not None or self._has_ended, self._stall_s)
            if not is_awake:
                raise ImageError(f"No frame has come for {self._stall_s:g} s. Check the source.")
            frame, self._newest = self._newest, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def _read(self) -> None:
        try:
            for frame in self._frames:
                with self._changed:
                    self.num_read += 1
                    self.num_dropped += self._newest is not None
                    self._newest = frame
                    self._changed.notify()
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again where the frames are taken
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify()


class ChangeFilter:
    """Which frames look different from the last one that was taken; :func:`fastvlm.images.video.has_changed` decides.

    Args:
        every_s: seconds that have to pass, by the frames' own times, before another frame is taken.
        is_off: True to take every frame.

    Attributes:
        num_unchanged: frames that looked like the last one taken, or came too soon after it.
    """

    def __init__(self, *, every_s: float = 0.0, is_off: bool = False) -> None:
        self.num_unchanged = 0
        self._every_s, self._is_off = every_s, is_off
        self._last: LiveFrame | None = None

    def takes(self, frame: LiveFrame) -> bool:
        """True if `frame` is new; the next ones are then compared with it. Raises ImageError if it is damaged."""
        last = self._last
        is_soon = last is not None and frame.time_s - last.time_s < self._every_s
        if is_soon or not (self._is_off or last is None or has_changed(last.image, frame.image)):
            self.num_unchanged += 1
            return False
        self._last = frame
        return True
