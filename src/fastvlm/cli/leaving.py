"""SIGTERM handling of verbs that write files: clean up as after Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_TERMINATED = 128 + 15  # as a shell reports a command ended by SIGTERM


@contextmanager
def leaving_cleanly() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that partial files are removed."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
