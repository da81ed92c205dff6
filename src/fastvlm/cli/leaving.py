"""SIGTERM in a verb that writes: it leaves as Ctrl-C does, by the exits that clean up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["leaving_cleanly"]

_TERMINATED = 128 + 15  # as a shell reports a command ended by SIGTERM


@contextmanager
def leaving_cleanly() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that nothing half written stays."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
