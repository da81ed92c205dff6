"""Opening the model that a verb works with."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from fastvlm.backends.native.openmp import configure_openmp
from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.terminal import Notes, quiet_libraries, quiet_warnings

if TYPE_CHECKING:
    from fastvlm.api import FastVLM


def open_model(
    choice: ModelChoice, notes: Notes, *, is_debug: bool, num_slots: int = 1, **engine: int
) -> tuple[FastVLM, float]:
    """The chosen model, which answers `num_slots` questions together, and the milliseconds it took.

    Importing the libraries is part of loading. `engine` are further settings of :class:`fastvlm.FastVLM`.
    """
    configure_openmp()
    from fastvlm.api import FastVLM
    from fastvlm.cli.mini_notice import tell_once
    from fastvlm.formats.places import checkpoint_path

    start_s = time.perf_counter()
    quiet_warnings(is_quiet=notes.is_quiet, is_debug=is_debug)
    folder = checkpoint_path(choice.name, revision=choice.revision)  # the Hub shows a bar of its own
    tell_once(folder, notes)
    with notes.waiting(f"Opening {choice.name}"):
        silence = partial(quiet_libraries, is_quiet=notes.is_quiet, is_debug=is_debug)
        settings = {**choice.settings(), **engine}
        model = FastVLM(str(folder), num_slots=num_slots, before_transformers=silence, **settings)
    return model, 1000 * (time.perf_counter() - start_s)
