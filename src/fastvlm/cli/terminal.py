"""Terminal output: answers on stdout; progress and notes on stderr, only if it is a terminal."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastvlm

if TYPE_CHECKING:
    from fastvlm.cli.wrapping import WordWrap

_UNITS = ("B", "KB", "MB", "GB", "TB")
PATIENCE_S = 2.0  # longer work shows its progress


def quiet_libraries(*, is_quiet: bool, is_debug: bool) -> None:
    """Keep warnings, logs and progress bars of the libraries off this process's stderr.

    Our own warnings are printed as lines like our errors (none with `is_quiet`). With `is_debug` nothing is hidden.
    """
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    if is_debug:
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    if _has_no_bars(is_quiet):
        disable_progress_bars()


def quiet_warnings(*, is_quiet: bool, is_debug: bool) -> None:
    """The part of :func:`quiet_libraries` that does not need to import transformers, which is slow."""
    if is_debug:
        return
    if is_quiet:
        warnings.simplefilter("ignore")
    warnings.showwarning = _show_own_warning
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if _has_no_bars(is_quiet):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional package on some CPUs
    # transformers imports torchao where it is installed: it warns of its CUDA libraries, and torch of its types.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_no_bars(is_quiet: bool) -> bool:
    return is_quiet or not sys.stderr.isatty()


def _show_own_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    del category
    if Path(filename).is_relative_to(Path(fastvlm.__file__).parent):
        say("warning", str(message))


def say(kind: str, message: str) -> None:
    """Write ``fastvlm: KIND: MESSAGE`` to stderr, as one line whatever `message` holds."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    one_line = " ".join(printable(message).split()).encode(encoding, "replace").decode(encoding)
    sys.stderr.write(f"fastvlm: {kind}: {one_line}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """`text` with control characters (escapes, bells) replaced by U+FFFD, so that a terminal does not obey them."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text
    )


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on one line of stdout and flush; ASCII only if stdout's encoding is not Unicode."""
    holds_all = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    sys.stdout.write(json.dumps(content, ensure_ascii=not holds_all) + "\n")
    sys.stdout.flush()


def in_bytes(num_bytes: int) -> str:
    """A number of bytes with its unit (powers of 1000): 12.3 KB, 456 MB."""
    value, unit = float(num_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if value >= 100 or unit == 0 else f"{value:.1f} {_UNITS[unit]}"


class Answers:
    """Writer of answers to stdout, flushed after each piece; on a terminal, lines break between words."""

    def __init__(self) -> None:
        self._wrap: WordWrap | None = None
        if sys.stdout.isatty():
            from fastvlm.cli.wrapping import WordWrap

            self._wrap = WordWrap(lambda: shutil.get_terminal_size().columns)

    def write(self, text: str) -> None:
        """Write a piece of an answer and flush; on a terminal without control characters, and whole words only."""
        sys.stdout.write(text if self._wrap is None else self._wrap.add(printable(text)))
        sys.stdout.flush()

    def cut(self) -> None:
        """Write the part of a word that was kept back, because no more of the answer comes."""
        if self._wrap is not None:
            sys.stdout.write(self._wrap.end())
            sys.stdout.flush()


class Notes:
    """Progress and summaries on stderr, shown only on a terminal.

    Args:
        is_quiet: True to show nothing.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        from rich.console import Console  # imported late: help pages do not need it

        self.is_quiet = is_quiet
        self.is_shown = sys.stderr.isatty() and not is_quiet
        self._console = Console(stderr=True, quiet=not self.is_shown, highlight=False, markup=False)

    def say(self, text: str) -> None:
        """Print a faint text (a plain one with NO_COLOR), broken between words; a long path stays whole."""
        self._console.print(
            printable(text), style="" if os.environ.get("NO_COLOR") else "dim", overflow="ignore", crop=False
        )

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner with `text` and the elapsed seconds, if the work inside takes longer than PATIENCE_S."""
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        progress = Progress(*columns, console=self._console, transient=True, disable=not self.is_shown)
        progress.add_task(printable(text), total=None)
        with _started_late(progress):
            yield

    @contextmanager
    def bars(self, *columns: Any) -> Iterator[Any]:
        """A ``rich.progress.Progress`` of these columns, removed when the work inside is done."""
        from rich.progress import Progress

        with Progress(*columns, console=self._console, transient=True, disable=not self.is_shown) as progress:
            yield progress

    @contextmanager
    def counting(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for work inside that calls the given function with (done, total), shown after PATIENCE_S."""
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        progress = Progress(
            *columns, TimeRemainingColumn(), console=self._console, transient=True, disable=not self.is_shown
        )
        task = progress.add_task(printable(text), total=None)
        with _started_late(progress):
            yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _started_late(progress: Any) -> Iterator[None]:
    """Show `progress` only from PATIENCE_S on, and never after the work is done."""
    timer = threading.Timer(PATIENCE_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
