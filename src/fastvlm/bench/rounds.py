"""The race: every worker opened, everything once to warm up, then round after round, one worker at a time.

A round goes through all steps before any is repeated, so that a neighbor who makes the machine slow for a while
makes it slow for everybody; every second round goes the other way round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.bench.plan import MEASURES, Contestant, Step
from fastvlm.bench.processes import WorkerProcess, all_ended
from fastvlm.bench.worker import Measured
from fastvlm.errors import MeasurementError

__all__ = ["PROBES", "Limits", "Race", "run"]

OnProgress = Callable[[float, float, str], None]  # seconds done, seconds in all as far as is known, what is going on

PROBES = ("matrix_peak", "bandwidth")
_PROBE = "machine"
_GUESS_S = 5.0  # a step's time before it is known
_SETTLE_S = 0.05  # threads of the last worker stop spinning


@dataclass(frozen=True)
class Limits:
    """How long things may take.

    Args:
        rounds: at most.
        max_s: after so many seconds no round is begun any more; the first always is.
        open_s: for a worker to open its model.
        step_s: for one command; the first of its kind, which may convert a model, may take as long as opening.
    """

    rounds: int
    max_s: float
    open_s: float = 300.0
    step_s: float = 120.0


@dataclass
class Race:
    """What came out."""

    samples: dict[tuple[str, tuple[tuple[str, int], ...], str], list[Measured]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # contestant, or contestant and measure -> one line
    opened: dict[str, Measured] = field(default_factory=dict)
    peaks: dict[str, list[Measured]] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0


class _Runner:
    def __init__(self, everybody: Sequence[Contestant], steps: Sequence[Step], limits: Limits, on: OnProgress) -> None:
        self.everybody, self.steps, self.limits, self.on_progress = everybody, list(steps), limits, on
        self.race = Race()
        self.workers: dict[str, WorkerProcess] = {}
        self._start_s = time.perf_counter()
        self._took_s: dict[Step, float] = {}

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start_s

    def open_all(self, probe: Contestant) -> None:
        """Start and open all workers, one after the other."""
        for contestant in (*self.everybody, probe):
            self._tell(f"opening {contestant.worker}")
            threads = int(contestant.options.get("threads", 0))
            worker = WorkerProcess(contestant.worker, contestant.arguments, contestant.program, threads)
            self.workers[contestant.worker] = worker
            try:
                self.race.opened[contestant.worker] = worker.ask({"do": "open"}, self.limits.open_s)
            except MeasurementError as error:
                self._drop(contestant.worker, str(error))

    def warm_up(self) -> None:
        """Every step once, not counted."""
        for step in self._runnable(1):
            if MEASURES[step.measure].has_warm_up:
                self._run(step, self.limits.open_s)

    def go_round(self) -> None:
        """One round, counted."""
        steps = self._next_round()
        self.race.rounds += 1
        for probe in PROBES:
            self._probe(probe)
        for step in steps if self.race.rounds % 2 else _other_way_round(steps):
            measured = self._run(step, self.limits.step_s)
            if measured is not None:
                self.race.samples.setdefault(step.key, []).append(measured)

    def has_time(self) -> bool:
        """True if another round is wanted, and fits."""
        if self.race.rounds >= self.limits.rounds:
            return False
        return self.race.rounds == 0 or self._fits(self._next_round())

    def _next_round(self) -> list[Step]:
        """Everything, or what is short if everything does not fit any more: few samples of what is long tell enough."""
        steps = self._runnable(self.race.rounds + 1)
        if self.race.rounds == 0 or self._fits(steps):
            return steps
        return [step for step in steps if MEASURES[step.measure].has_warm_up]

    def _fits(self, steps: Sequence[Step]) -> bool:
        needed_s = sum(self._seconds_of(step) for step in steps)
        return bool(steps) and self.elapsed_s + needed_s < self.limits.max_s

    def memory(self) -> None:
        """Ask for what is known only at the end."""
        for step in self.steps:
            if step.measure == "memory" and step.worker in self.workers:
                measured = self._run(step, self.limits.step_s)
                if measured is not None:
                    self.race.samples[step.key] = [measured]

    def _runnable(self, number: int) -> list[Step]:
        """The steps of round `number` whose workers are there and can do them."""
        return [
            step
            for step in self.steps
            if step.measure != "memory"
            and number <= MEASURES[step.measure].max_rounds
            and step.worker in self.workers
            and _label(step) not in self.race.failures
        ]

    def _run(self, step: Step, timeout_s: float) -> Measured | None:
        self._tell(f"{step.measure} {' '.join(str(value) for _, value in step.case)} {step.contestant}")
        if step.worker not in self.workers:  # it has died in this round
            return None
        time.sleep(_SETTLE_S)
        start_s = time.perf_counter()
        try:
            measured = self.workers[step.worker].ask(step.command, timeout_s)
        except MeasurementError as error:
            if self.workers[step.worker].is_alive:
                self.race.failures.setdefault(_label(step), str(error))
            else:
                self._drop(step.worker, str(error))
            return None
        self._took_s[step] = time.perf_counter() - start_s
        return measured

    def _probe(self, name: str) -> None:
        if _PROBE not in self.workers:
            return
        try:
            measured = self.workers[_PROBE].ask({"do": name}, self.limits.step_s)
        except MeasurementError as error:
            self._drop(_PROBE, str(error))
            return
        self.race.peaks.setdefault(name, []).append(measured)

    def _drop(self, name: str, reason: str) -> None:
        self.workers.pop(name).end()
        self.race.failures[name] = reason

    def _seconds_of(self, step: Step) -> float:
        known = self._took_s.values()
        return self._took_s.get(step, sum(known) / len(known) if known else _GUESS_S) + _SETTLE_S

    def _tell(self, what: str) -> None:
        rounds = range(self.race.rounds + 1, self.limits.rounds + 1)
        left_s = sum(self._seconds_of(step) for number in rounds for step in self._runnable(number))
        self.on_progress(self.elapsed_s, min(self.elapsed_s + left_s, max(self.limits.max_s, self.elapsed_s)), what)


def _label(step: Step) -> str:
    """What a failed command is noted under, which is not tried again."""
    case = "".join(f" {value}" for _, value in step.case)
    return f"{step.contestant}: {step.measure}{case}"


def _other_way_round(steps: Sequence[Step]) -> list[Step]:
    """The same measures in the same order, the contestants of each the other way round."""
    groups: dict[Any, list[Step]] = {}
    for step in steps:
        groups.setdefault((step.measure, step.case), []).append(step)
    return [step for group in groups.values() for step in reversed(group)]


def run(
    everybody: Sequence[Contestant],
    steps: Sequence[Step],
    limits: Limits,
    on_progress: OnProgress,
    probe: dict[str, Any] | None = None,
) -> Race:
    """Measure `steps`; no process is left when it returns or raises.

    `probe` are the options of what measures the machine's peaks: `threads`, `device`.

    A worker that dies or does not answer is noted in `failures` and left out from there on; the rest goes on.

    Raises:
        MeasurementError: our own model could not be opened; it says why.
    """
    runner = _Runner(everybody, steps, limits, on_progress)
    with all_ended(runner.workers):
        runner.open_all(Contestant(_PROBE, "probe", probe or {}, frozenset()))
        first = everybody[0].worker
        if first in runner.race.failures:
            raise MeasurementError(runner.race.failures[first])
        runner.warm_up()
        while runner.has_time():
            runner.go_round()
        runner.memory()
    runner.race.seconds = runner.elapsed_s
    return runner.race
