"""One run of `fastvlm bench`: the phases, one after the other, and their result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.bench.contestants import Phase, check_kernels, phases
from fastvlm.bench.kept_phases import KeptPhases
from fastvlm.bench.machine import environment_card
from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.results import result_of
from fastvlm.bench.rounds import Limits, Measurements, OnProgress, run
from fastvlm.errors import MeasurementError
from fastvlm.formats.folder import inspect_folder
from fastvlm.hf.config import FastVlmConfig


def measure(options: BenchOptions, on_progress: OnProgress, resumed: Path | None = None) -> dict[str, Any]:
    """Run the benchmark; see :func:`fastvlm.bench.results.result_of`.

    Args:
        options: of the run.
        on_progress: called with (seconds done, estimated seconds in total, current step).
        resumed: a file that keeps finished phases; those of an equal run that it holds are not measured again.

    Raises:
        CheckpointError: the folder holds no FastVLM.
        MeasurementError: it cannot be opened.
        UsageError: a level of kernels that this machine cannot run; `resumed` is no file of finished phases.
    """
    check_kernels(options.kernels)
    config = FastVlmConfig.from_dict(inspect_folder(Path(options.folder)).config)
    card = environment_card()  # before the run, so that the load average is that of other programs
    kept = KeptPhases(resumed, options, card)
    run_phase = _PhaseRunner(options, on_progress, phases(options))
    found: dict[str, Measurements] = {}
    for phase in run_phase.all:
        measurements = kept.get(phase.name)
        if measurements is None:
            measurements = run_phase(phase, is_needed=not found)
            kept.add(phase.name, measurements)
        found[phase.name] = measurements
    return result_of(options, config, found, card)


class _PhaseRunner:
    """Runs phases within the time of the whole run."""

    def __init__(self, options: BenchOptions, on_progress: OnProgress, found: list[Phase]) -> None:
        self.options, self.on_progress, self.all = options, on_progress, found
        self.left, self.left_s = sum(phase.share for phase in found), 60 * options.max_minutes
        self._start_s = time.perf_counter()

    def __call__(self, phase: Phase, *, is_needed: bool) -> Measurements:
        """Measure one phase; a failure of our own contestant ends the run only if the phase `is_needed`."""
        max_s = self.left_s * phase.share / self.left
        probe = {"threads": self.options.threads, "device": self.options.device}
        limits, start_s = Limits(self.options.rounds, max_s), time.perf_counter()
        try:
            return run(phase.contestants, phase.steps, limits, self._report(phase, max_s), probe)
        except MeasurementError as error:
            if is_needed:
                raise
            return Measurements(failures={phase.contestants[0].worker: str(error)})
        finally:
            self.left -= phase.share
            self.left_s = max(0.0, self.left_s - (time.perf_counter() - start_s))

    def _report(self, phase: Phase, max_s: float) -> Callable[[float, float, str], None]:
        before_s, later_s = time.perf_counter() - self._start_s, self.left_s - max_s

        def report(done_s: float, total_s: float, what: str) -> None:
            self.on_progress(before_s + done_s, before_s + total_s + later_s, f"{phase.name}: {what}")

        return report
