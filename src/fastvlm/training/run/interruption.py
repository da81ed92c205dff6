"""SIGTERM and Ctrl-C during a run: the current step is completed, a checkpoint is written, then the run stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HEARD = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """The signal that asked the run to stop, if any.

    Attributes:
        signal: its number, or None.
        is_waiting_for_step: True while a next step will handle a signal; else a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_waiting_for_step = False

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Context in which the two signals are recorded instead of ending the process; a second Ctrl-C ends it."""
        before = {number: signal.signal(number, self._note) for number in _HEARD}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def waiting_for_step(self) -> Iterator[None]:
        """Context of the training loop, in which the next step handles a signal."""
        self.is_waiting_for_step = True
        try:
            yield
        finally:
            self.is_waiting_for_step = False

    def _note(self, number: int, _frame: FrameType | None) -> Any:
        is_again = self.signal is not None and number == signal.SIGINT
        self.signal = number
        if self.is_waiting_for_step and not is_again:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
