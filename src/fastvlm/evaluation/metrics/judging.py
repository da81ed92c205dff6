"""Metric interface: replies and questions -> a score per reply and a total."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastvlm.evaluation.questions import Question


@dataclass(frozen=True)
class Judged:
    """Scores of a set of replies.

    Args:
        score: over all of them; what the metric is quoted by.
        each: one a reply, 0 wrong to 1 right (CIDEr: 0 to 10).
        figures: further numbers that belong to the score.
        is_mean: True if `score` is the mean of `each` in 0 to 1, so that an interval can be given.
    """

    score: float
    each: tuple[float, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    is_mean: bool = True


Judge = Callable[[Sequence[str], Sequence[Question]], Judged]


def _no_problem(question: Question) -> str | None:
    """No restriction on the answers."""
    del question
    return None


@dataclass(frozen=True)
class Metric:
    """A published metric.

    Args:
        name: what the summary and `--metric` call it.
        label: what it is, for people.
        source: where it is defined.
        judge: replies and their questions, equally many and at least one.
        is_error: True if less is better.
        problem: why a question cannot be judged, or None; for metrics that need certain answers.
    """

    name: str
    label: str
    source: str
    judge: Judge
    is_error: bool = False
    problem: Callable[[Question], str | None] = _no_problem


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return sum(values) / len(values)


def one_by_one(score: Callable[[str, Question], float]) -> Judge:
    """A judge whose total is the mean of the replies' scores."""

    def judge(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
        each = tuple(score(reply, question) for reply, question in zip(replies, questions, strict=True))
        return Judged(mean(each), each)

    return judge
