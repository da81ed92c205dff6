"""Finished phases of a run in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.worker import Measured
from fastvlm.errors import UsageError
from fastvlm.storage.whole_files import write_file

_LIMIT_BYTES = 64 * 2**20
_OF_THE_HOUR = ("load_average",)  # what may differ between a run and its continuation


class KeptPhases:
    """Finished phases of runs with equal options on one machine, at one commit.

    Args:
        file: where they are; it need not exist. None keeps nothing.
        options: of this run; phases of a run with other ones are forgotten.
        card: the environment.

    Raises:
        UsageError: `file` holds something else.
    """

    def __init__(self, file: Path | None, options: BenchOptions, card: dict[str, Any]) -> None:
        self._file = file
        environment = {name: value for name, value in card.items() if name not in _OF_THE_HOUR}
        self._run = json.loads(json.dumps({"settings": options.settings(), "environment": environment}))
        found = _read(file) if file is not None and file.exists() else {}
        self._phases: dict[str, Any] = found["phases"] if found.get("run") == self._run else {}

    def get(self, name: str) -> Measurements | None:
        """The phase `name`, if it is finished."""
        return _from_json(self._phases[name]) if name in self._phases else None

    def add(self, name: str, measurements: Measurements) -> None:
        """Keep a finished phase, at once."""
        if self._file is not None:
            self._phases[name] = _as_json(measurements)
            write_file(self._file, json.dumps({"run": self._run, "phases": self._phases}))


def _read(file: Path) -> dict[str, Any]:
    message = (
        f"{file} does not hold finished phases of a benchmark; expected a file that --resume wrote, or a new name."
    )
    try:
        if file.stat().st_size > _LIMIT_BYTES:
            raise UsageError(message)
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(message) from None
    if not isinstance(found, dict) or set(found) != {"run", "phases"}:
        raise UsageError(message)
    return found


def _as_json(measurements: Measurements) -> dict[str, Any]:
    samples = [[*key, [asdict(sample) for sample in found]] for key, found in measurements.samples.items()]
    return {
        "samples": samples,
        "failures": measurements.failures,
        "opened": {name: asdict(found) for name, found in measurements.opened.items()},
        "peaks": {name: [asdict(sample) for sample in found] for name, found in measurements.peaks.items()},
        "rounds": measurements.rounds,
        "seconds": measurements.seconds,
    }


def _from_json(found: dict[str, Any]) -> Measurements:
    samples = {
        (measure, tuple((name, value) for name, value in case), contestant): [Measured(**sample) for sample in each]
        for measure, case, contestant, each in found["samples"]
    }
    opened = {name: Measured(**sample) for name, sample in found["opened"].items()}
    peaks = {name: [Measured(**sample) for sample in each] for name, each in found["peaks"].items()}
    return Measurements(samples, found["failures"], opened, peaks, found["rounds"], found["seconds"])
