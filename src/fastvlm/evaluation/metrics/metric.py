"""Metric interface: replies and questions -> a score per reply and a total, with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fastvlm.evaluation.questions import Question

Z_95 = 1.96  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Judged:
    """Scores of a set of replies.

    Args:
        score: over all of them; the number that the metric is quoted by.
        each: one a reply, 0 wrong to 1 right (CIDEr: 0 to 10).
        figures: further numbers that belong to the score.
        is_mean: True if `score` is the mean of `each` in 0 to 1, so that an interval can be given.
    """

    score: float
    each: tuple[float, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    is_mean: bool = True


Judge = Callable[[Sequence[str], Sequence[Question]], Judged]


@dataclass(frozen=True)
class Metric:
    """A published metric.

    Args:
        name: in the summary and for `--metric`.
        label: its usual name.
        source: where it is defined.
        judge: replies and their questions, equally many and at least one.
        is_error: True if less is better.
        problem: for metrics that need certain answers: why a question cannot be judged, or None.
    """

    name: str
    label: str
    source: str
    judge: Judge
    is_error: bool = False
    problem: Callable[[Question], str | None] = lambda _: None


def one_by_one(score: Callable[[str, Question], float]) -> Judge:
    """A judge whose total is the mean of the replies' scores."""

    def judge(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
        each = tuple(map(score, replies, questions))
        return Judged(fmean(each), each)

    return judge


def wilson_interval(share: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share of `n` questions, 0 to 1.

    It is too wide for scores between 0 and 1 that are not only right or wrong (VQA accuracy, ANLS), because such a
    score with the mean p varies by at most p (1 - p).

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(max(0.0, share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, center - half), min(1.0, center + half)
