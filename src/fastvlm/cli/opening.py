"""Opening what a verb works with: images first, so that a wrong path is reported before a model is loaded."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.request import STDIN
from fastvlm.cli.terminal import Notes, quiet_libraries, quiet_warnings
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastvlm.api import FastVLM


def open_images(names: Sequence[str], notes: Notes) -> tuple[list[Image], float]:
    """The images as RGB, and the milliseconds it took.

    Raises:
        UsageError: nothing came through stdin.
        ImageError: not an image, too large, or at an address that does not answer.
    """
    from fastvlm.images import open_image

    start_s = time.perf_counter()
    with notes.waiting("Fetching images"):
        images = [open_image(image_source(name)) for name in names]
    return images, 1000 * (time.perf_counter() - start_s)


def image_source(name: str) -> str | bytes:
    """What `open_image` takes for an image as typed: bytes for stdin and for pipes, such as the shell's <(...)."""
    if name == STDIN:
        return _read_stdin()
    return Path(name).read_bytes() if Path(name).is_fifo() else name


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read()
    if not data:
        raise UsageError("'-' reads an image from stdin, but nothing came. Try: fastvlm ask - \"...\" < cat.png")
    return data


def open_model(choice: ModelChoice, notes: Notes, *, is_debug: bool, num_slots: int = 1) -> tuple[FastVLM, float]:
    """The chosen model, which answers `num_slots` questions together, and the milliseconds it took.

    Importing the libraries is part of loading.
    """
    from fastvlm.api import FastVLM
    from fastvlm.cli.mini_notice import tell_once
    from fastvlm.formats.places import checkpoint_path

    start_s = time.perf_counter()
    quiet_warnings(is_quiet=notes.is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with notes.waiting(f"Opening {choice.name}"):
        silence = partial(quiet_libraries, is_quiet=notes.is_quiet, is_debug=is_debug)
        model = FastVLM(str(folder), num_slots=num_slots, before_transformers=silence, **choice.settings())
    return model, 1000 * (time.perf_counter() - start_s)
