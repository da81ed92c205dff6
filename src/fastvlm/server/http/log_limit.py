"""A log filter that limits the rate of warnings and errors, so that clients cannot flood the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class LogLimit(logging.Filter):
    """Passes at most `burst` warnings and as many errors per logger in `window_s` seconds; the next one has the count.

    Records below the level of warnings pass.

    Args:
        burst: number of records per logger and level.
        window_s: seconds, from the first of them.
        clock: monotonic time in seconds.
    """

    def __init__(self, burst: int = 10, window_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst, self._window_s, self._clock = burst, window_s, clock
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}  # start of the window, records since

    def filter(self, record: logging.LogRecord) -> bool:
        """True if `record` is written."""
        if record.levelno < logging.WARNING:
            return True
        key, now_s = (record.name, record.levelno), self._clock()
        begun_s, count = self._windows.get(key, (now_s, 0))
        if now_s - begun_s >= self._window_s:
            if count > self._burst:
                record.msg = f"{record.getMessage()} ({count - self._burst} more were suppressed)"
                record.args = None
            begun_s, count = now_s, 0
        self._windows[key] = (begun_s, count + 1)
        return count < self._burst
