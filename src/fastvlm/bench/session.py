"""One run of `fastvlm bench`: the measurements and their result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.bench.machine import environment_card
from fastvlm.bench.plan import BenchOptions, contestants, steps
from fastvlm.bench.results import result_of
from fastvlm.bench.rounds import Limits, OnProgress, run
from fastvlm.formats.folder import inspect_folder
from fastvlm.hf.config import FastVlmConfig


def measure(options: BenchOptions, on_progress: OnProgress) -> dict[str, Any]:
    """Run the benchmark; see :func:`fastvlm.bench.results.result_of`.

    Raises:
        CheckpointError: the folder holds no FastVLM.
        MeasurementError: it cannot be opened.
    """
    config = FastVlmConfig.from_dict(inspect_folder(Path(options.folder)).config)
    card = environment_card()  # before the run, so that the load average is that of other programs
    measured = contestants(options)
    limits = Limits(options.rounds, 60 * options.max_minutes)
    probe = {"threads": options.threads, "device": options.device}
    measurements = run(measured, steps(options, measured), limits, on_progress, probe)
    return result_of(options, config, measurements, card)
