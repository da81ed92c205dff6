"""One run of `fastvlm bench`: checkpoint, image, measurements, result."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvlm.bench.inputs import photo_jpeg
from fastvlm.bench.machine import environment_card
from fastvlm.bench.plan import BenchOptions, contestants, steps
from fastvlm.bench.random_checkpoint import make_checkpoint
from fastvlm.bench.results import result_of
from fastvlm.bench.rounds import Limits, OnProgress, run
from fastvlm.formats.folder import inspect_folder
from fastvlm.hf.config import FastVlmConfig


@contextmanager
def random_checkpoint(
    preset: str, folder: Path, *, is_kept: bool, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Path]:
    """A random checkpoint in `folder`: an existing one, or a new one, removed afterwards unless `is_kept`."""
    was_there = folder.exists()
    try:
        yield make_checkpoint(preset, folder, on_bytes)
    finally:
        if not was_there and not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def image_file(width_px: int, height_px: int) -> Iterator[str]:
    """Path of a temporary JPEG that is as hard to decode as a photograph."""
    with tempfile.TemporaryDirectory(prefix="fastvlm-bench-") as folder:
        file = Path(folder) / f"{width_px}x{height_px}.jpg"
        file.write_bytes(photo_jpeg(width_px, height_px))
        yield str(file)


def measure(options: BenchOptions, model: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """Run the benchmark; returns what :func:`fastvlm.bench.results.result_of` describes, and `model`.

    Args:
        options: what to measure.
        model: `name`, `is_random` and `parameters`, for the report.
        on_progress: called with (seconds done, estimated seconds in total, current step).

    Raises:
        CheckpointError: the folder holds no FastVLM.
        MeasurementError: it cannot be opened.
    """
    config = FastVlmConfig.from_dict(inspect_folder(Path(options.folder)).config)
    card = environment_card()  # before the run, so that the load average is that of other programs
    everybody = contestants(options)
    limits = Limits(options.rounds, 60 * options.max_minutes)
    probe = {"threads": options.threads, "device": options.device}
    measurements = run(everybody, steps(options, everybody), limits, on_progress, probe)
    return {"model": model, **result_of(options, config, measurements, card)}
