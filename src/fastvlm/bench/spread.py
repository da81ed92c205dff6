"""Statistics of repeated measurements: medians with their spread, and ratios of two contestants."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """Ratio of two contestants' medians, and the range of the ratios of single rounds; above 1 ours is better."""

    value: float
    lowest: float
    highest: float


def six_digits(value: float) -> float:
    """`value` rounded to six significant digits, for JSON."""
    return float(f"{value:.6g}")


def summarize(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles (linear between samples) and range of at least one sample, as JSON values."""
    low, lower, median, upper, high = (six_digits(value) for value in np.percentile(samples, [0, 25, 50, 75, 100]))
    return {
        "median": median,
        "quartiles": [lower, upper],
        "range": [low, high],
        "samples": [six_digits(sample) for sample in samples],
    }


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
