"""Statistics of repeated measurements: medians with their spread, and ratios of two contestants."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastvlm.errors import UsageError


@dataclass(frozen=True)
class Spread:
    """Samples of one measurement, in the order of the rounds."""

    samples: tuple[float, ...]
    median: float
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with six digits."""
        return {
            "median": _six_digits(self.median),
            "quartiles": [_six_digits(self.lower_quartile), _six_digits(self.upper_quartile)],
            "range": [_six_digits(self.lowest), _six_digits(self.highest)],
            "samples": [_six_digits(sample) for sample in self.samples],
        }


@dataclass(frozen=True)
class Ratio:
    """How many times better one contestant is: the ratio of medians, and the range of the ratios of single rounds."""

    value: float
    lowest: float
    highest: float


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def summarize(samples: Sequence[float]) -> Spread:
    """Median, quartiles (linear between samples) and range of at least one sample.

    Raises:
        UsageError: there is no sample.
    """
    if not samples:
        raise UsageError("There are no samples to summarize; expected at least one.")
    several = samples if len(samples) > 1 else [*samples, *samples]
    lower, _, upper = statistics.quantiles(several, n=4, method="inclusive")
    return Spread(tuple(samples), statistics.median(samples), lower, upper, min(samples), max(samples))


def ratio(ours: Sequence[float], theirs: Sequence[float], *, is_more_better: bool) -> Ratio:
    """How many times better `ours` are than `theirs`.

    Samples at the same index are of the same round; rounds that one of the two lacks are left out of the range.

    Args:
        ours, theirs: positive samples in one unit.
        is_more_better: True for rates such as tokens a second, False for durations and bytes.
    """
    better, worse = (ours, theirs) if is_more_better else (theirs, ours)
    by_round = [a / b for a, b in zip(better, worse, strict=False)]
    return Ratio(statistics.median(better) / statistics.median(worse), min(by_round), max(by_round))
