"""Progress lines on stderr every half a minute, if it is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from fastvlm.cli.terminal import say

if TYPE_CHECKING:
    from fastvlm.training.run.callbacks import Progress

EVERY_S = 30.0


class ProgressLines:
    """Prints the progress at most once in EVERY_S seconds, first after that time.

    Args:
        kind: begins each line, ``fastvlm: KIND: ...``.
        clock: seconds that only grow.
    """

    def __init__(self, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.kind, self.clock = kind, clock
        self.said_s = clock()
        self.first: tuple[float, int] | None = None

    def report(self, progress: Progress) -> None:
        """Report a step."""
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        speed = f", {progress.images_per_s:.1f} images/s" if progress.images_per_s else ""
        self._say("step", progress.step, progress.num_steps, loss + speed)

    def count(self, done: int, total: int) -> None:
        """Report a count of `total` samples."""
        self._say("sample", done, total, "")

    def _say(self, what: str, done: int, total: int, facts: str) -> None:
        now_s = self.clock()
        begin_s, before = self.first = self.first or (now_s, done)
        if now_s - self.said_s < EVERY_S:
            return
        self.said_s = now_s
        left = ""
        if done > before:
            left_s = round((now_s - begin_s) / (done - before) * (total - done))
            left = f", {timedelta(seconds=left_s)} left"
        say(self.kind, f"{what} {done} of {total}{facts}{left}")
