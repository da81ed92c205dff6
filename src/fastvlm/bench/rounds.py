"""Run the measurements: open every worker, warm up, then repeat all steps in rounds, one worker at a time.

A round runs all steps before any is repeated, so that other load on the machine slows all contestants alike. Every
second round reverses the order of the contestants.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.bench.plan import MEASURES, Case, Contestant, Step, failure_key
from fastvlm.bench.processes import WorkerProcess, all_ended
from fastvlm.bench.worker import Measured
from fastvlm.errors import MeasurementError

OnProgress = Callable[[float, float, str], None]  # seconds done, estimated seconds in total, current step

PROBES = ("multiply_adds", "bandwidth")
_PROBE = "machine"
_GUESS_S = 5.0  # assumed time of a step before it has run
_SETTLE_S = 0.05  # until the last worker's threads stop spinning


@dataclass(frozen=True)
class Limits:
    """Limits of a run.

    Args:
        rounds: maximum number of rounds.
        max_s: no round starts that would end so many seconds after all are open, except the first.
        open_s: time limit of opening a model.
        step_s: time limit of one command; `open_s` for the first of its kind, which may convert a model.
    """

    rounds: int
    max_s: float
    open_s: float = 900.0  # converting and quantizing an encoder takes minutes
    step_s: float = 120.0


@dataclass
class Measurements:
    """Samples, failures and peaks of a run."""

    samples: dict[tuple[str, Case, str], list[Measured]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # contestant, or contestant and measure -> one line
    opened: dict[str, Measured] = field(default_factory=dict)
    peaks: dict[str, list[Measured]] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0


class _Runner:
    def __init__(
        self, contestants: Sequence[Contestant], steps: Sequence[Step], limits: Limits, on_progress: OnProgress
    ) -> None:
        self.contestants, self.steps, self.limits, self.on_progress = contestants, list(steps), limits, on_progress
        self.measurements = Measurements()
        self.workers: dict[str, WorkerProcess] = {}
        self._start_s = self._opened_s = time.perf_counter()
        self._took_s: dict[Step, float] = {}

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start_s

    def open_all(self, probe: Contestant) -> None:
        """Start and open all workers, one after the other."""
        for contestant in (*self.contestants, probe):
            name, threads = contestant.worker, int(contestant.options.get("threads", 0))
            self._report(f"opening {name}")
            self.workers[name] = WorkerProcess(
                name, contestant.arguments, contestant.program, threads, contestant.environment
            )
            opened = self._ask(name, {"do": "open"}, self.limits.open_s)
            if opened is not None:
                self.measurements.opened[name] = opened
        self._opened_s = time.perf_counter()

    def warm_up(self) -> None:
        """Every step once, not counted."""
        for step in self._runnable(1):
            if MEASURES[step.measure].has_warm_up:
                self._run(step, self.limits.open_s)

    def go_round(self) -> None:
        """One round, counted."""
        steps = self._next_round()
        self.measurements.rounds += 1
        for name in PROBES:
            measured = self._ask(_PROBE, {"do": name}, self.limits.step_s)
            if measured is not None:
                self.measurements.peaks.setdefault(name, []).append(measured)
        self._sample(steps if self.measurements.rounds % 2 else _reversed_contestants(steps))

    def memory(self) -> None:
        """Measure peak memory, which is known only at the end."""
        self._sample([step for step in self.steps if step.measure == "memory"])

    def has_time(self) -> bool:
        """True if another round is wanted and fits into the time limit."""
        if self.measurements.rounds >= self.limits.rounds:
            return False
        return self.measurements.rounds == 0 or self._fits(self._next_round())

    def _next_round(self) -> list[Step]:
        """All steps of the next round, or only the short ones if all do not fit into the time left."""
        steps = self._runnable(self.measurements.rounds + 1)
        if self.measurements.rounds == 0 or self._fits(steps):
            return steps
        return [step for step in steps if MEASURES[step.measure].has_warm_up]

    def _fits(self, steps: Sequence[Step]) -> bool:
        needed_s = sum(self._seconds_of(step) for step in steps)
        return bool(steps) and time.perf_counter() - self._opened_s + needed_s < self.limits.max_s

    def _runnable(self, number: int) -> list[Step]:
        """The steps of round `number` whose workers run and have not failed them."""
        return [
            step
            for step in self.steps
            if step.measure != "memory"
            and number <= MEASURES[step.measure].max_rounds
            and step.worker in self.workers
            and _failure_key(step) not in self.measurements.failures
        ]

    def _sample(self, steps: Sequence[Step]) -> None:
        for step in steps:
            measured = self._run(step, self.limits.step_s)
            if measured is not None:
                self.measurements.samples.setdefault(step.key, []).append(measured)

    def _run(self, step: Step, timeout_s: float) -> Measured | None:
        self._report(f"{step.measure} {' '.join(str(value) for _, value in step.case)} {step.contestant}")
        time.sleep(_SETTLE_S)
        start_s = time.perf_counter()
        measured = self._ask(step.worker, step.command, timeout_s, _failure_key(step))
        if measured is not None:
            self._took_s[step] = time.perf_counter() - start_s
        return measured

    def _ask(
        self, worker: str, command: dict[str, Any], timeout_s: float, failure: str | None = None
    ) -> Measured | None:
        """The worker's answer, or None for a failure, which is recorded.

        A worker that has died is dropped, and so is one that fails a command without a key `failure`.
        """
        if worker not in self.workers:
            return None
        try:
            return self.workers[worker].ask(command, timeout_s)
        except MeasurementError as error:
            if failure is not None and self.workers[worker].is_alive:
                self.measurements.failures.setdefault(failure, str(error))
            else:
                self.workers.pop(worker).end()
                self.measurements.failures[worker] = str(error)
            return None

    def _seconds_of(self, step: Step) -> float:
        known = self._took_s.values()
        return self._took_s.get(step, sum(known) / len(known) if known else _GUESS_S) + _SETTLE_S

    def _report(self, what: str) -> None:
        rounds = range(self.measurements.rounds + 1, self.limits.rounds + 1)
        left_s = sum(self._seconds_of(step) for number in rounds for step in self._runnable(number))
        self.on_progress(self.elapsed_s, min(self.elapsed_s + left_s, max(self.limits.max_s, self.elapsed_s)), what)


def _failure_key(step: Step) -> str:
    return failure_key(step.contestant, step.measure, step.case)


def _reversed_contestants(steps: Sequence[Step]) -> list[Step]:
    """The same order of measures, with the contestants of each reversed."""
    groups: dict[Any, list[Step]] = {}
    for step in steps:
        groups.setdefault((step.measure, step.case), []).append(step)
    return [step for group in groups.values() for step in reversed(group)]


def run(
    contestants: Sequence[Contestant],
    steps: Sequence[Step],
    limits: Limits,
    on_progress: OnProgress,
    probe: dict[str, Any] | None = None,
) -> Measurements:
    """Measure `steps`; no process is left when it returns or raises.

    A worker that dies or does not answer is recorded in `failures` and measured no further; the others go on.

    Args:
        contestants: programs to measure, ours first.
        steps: of one round.
        limits: of the run.
        on_progress: called with (seconds done, estimated seconds in total, current step).
        probe: options of the worker that measures the machine's peaks: `threads`, `device`.

    Raises:
        MeasurementError: our own model could not be opened, with the reason.
    """
    runner = _Runner(contestants, steps, limits, on_progress)
    with all_ended(runner.workers):
        runner.open_all(Contestant(_PROBE, "probe", probe or {}, frozenset()))
        first = contestants[0].worker
        if first in runner.measurements.failures:
            raise MeasurementError(runner.measurements.failures[first])
        runner.warm_up()
        while runner.has_time():
            runner.go_round()
        runner.memory()
    runner.measurements.seconds = runner.elapsed_s
    return runner.measurements
