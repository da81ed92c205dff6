"""Score table: score, interval, blind score and majority score of each test."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.evaluation.metrics.judging import Judged, Metric, mean
from fastvlm.evaluation.metrics.text_match import normalized
from fastvlm.evaluation.metrics.wilson import wilson_interval
from fastvlm.evaluation.questions import Question
from fastvlm.evaluation.run.predictions import Prediction

REFUSAL = "there is no"  # how the mini says that a question has no answer


@dataclass(frozen=True)
class Row:
    """A row of the score table; scores are 0 to 1 except for CIDEr.

    Args:
        test, n: its name and its questions.
        score: over all of them; those that could not be asked count as an empty reply.
        interval: 95 % confidence interval; None if the score is not a mean.
        blind: the score of the replies to the same questions about a gray image, None if they were not asked.
        majority: the score of always giving the commonest answer.
        figures: further figures of the metric.
        num_failed: questions that could not be asked.
        each: one score a question, in the questions' order; for the worst cases.
    """

    test: str
    n: int
    score: float
    interval: tuple[float, float] | None = None
    blind: float | None = None
    majority: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    num_failed: int = 0
    each: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The row for the summary, without the scores of single replies."""
        return {
            "n": self.n,
            "score": self.score,
            "interval": None if self.interval is None else list(self.interval),
            "blind": self.blind,
            "majority": self.majority,
            "figures": dict(self.figures),
            "failed": self.num_failed,
        }


def by_test(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Group questions by test, in order."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.test].append(question)
    return dict(groups)


def drawn(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` random questions of each test, in their original order; all if None."""
    if limit is None:
        return list(questions)
    kept: set[str] = set()
    for test, group in by_test(questions).items():
        draw = random.Random(f"{seed}:{test}")  # noqa: S311 - a sample, no secret
        kept.update(question.id for question in draw.sample(group, min(limit, len(group))))
    return [question for question in questions if question.id in kept]


def score_tests(
    questions: Sequence[Question],
    seen: Mapping[str, Prediction],
    blind: Mapping[str, str] | None,
    metric: Metric,
) -> list[Row]:
    """A row a test.

    Args:
        questions: all that were to be asked.
        seen: predictions by the question's id.
        blind: replies to the gray images by the question's id; None if they were not asked.
        metric: judges them all.
    """
    return [_row(test, group, seen, blind, metric) for test, group in by_test(questions).items()]


def _row(
    test: str,
    questions: Sequence[Question],
    seen: Mapping[str, Prediction],
    blind: Mapping[str, str] | None,
    metric: Metric,
) -> Row:
    said = [seen[question.id] for question in questions]
    judged = metric.judge([one.reply for one in said], questions)
    return Row(
        test=test,
        n=len(questions),
        score=judged.score,
        interval=_interval(judged),
        blind=None if blind is None else metric.judge([blind[q.id] for q in questions], questions).score,
        majority=metric.judge([commonest_answer(questions)] * len(questions), questions).score,
        figures=judged.figures,
        num_failed=sum(one.error is not None for one in said),
        each=judged.each,
    )


def _interval(judged: Judged) -> tuple[float, float] | None:
    return wilson_interval(judged.score, len(judged.each)) if judged.is_mean else None


def commonest_answer(questions: Sequence[Question]) -> str:
    """The single reply that is correct for most questions; the first of several.

    Each question's own answer is the one that most of its annotators gave.
    """
    answers = [Counter(map(normalized, question.answers)).most_common(1)[0][0] for question in questions]
    commonest = Counter(answers).most_common(1)[0][0]
    written = (answer for question in questions for answer in question.answers if normalized(answer) == commonest)
    return next(written)


def together(name: str, rows: Sequence[Row]) -> Row:
    """Unweighted mean of several tests' scores, as reported for POPE and ChartQA."""
    blinds = [row.blind for row in rows if row.blind is not None]
    majorities = [row.majority for row in rows if row.majority is not None]
    return Row(
        test=name,
        n=sum(row.n for row in rows),
        score=mean([row.score for row in rows]),
        blind=mean(blinds) if len(blinds) == len(rows) else None,
        majority=mean(majorities) if len(majorities) == len(rows) else None,
        num_failed=sum(row.num_failed for row in rows),
    )


def refusal_rows(
    questions: Sequence[Question], seen: Mapping[str, Prediction], blind: Mapping[str, str] | None
) -> list[Row]:
    """Rows for unanswerable questions of the mini suite: correct refusals and false refusals.

    ``unanswerable_refused`` is the share of refusals among questions whose answer is one, ``false_refusals`` among the
    others; of the latter less is better. No rows without unanswerable questions.
    """
    unanswerable = [question for question in questions if is_refusal(question.answers[0])]
    answerable = [question for question in questions if not is_refusal(question.answers[0])]
    if not unanswerable:
        return []
    groups = {"unanswerable_refused": unanswerable, "false_refusals": answerable}
    return [_refusals(name, group, seen, blind) for name, group in groups.items() if group]


def is_refusal(text: str) -> bool:
    """True for "There is no ..."."""
    return normalized(text).startswith(REFUSAL)


def _refusals(
    name: str, questions: Sequence[Question], seen: Mapping[str, Prediction], blind: Mapping[str, str] | None
) -> Row:
    share = mean([float(is_refusal(seen[question.id].reply)) for question in questions])
    blind_share = None if blind is None else mean([float(is_refusal(blind[question.id])) for question in questions])
    return Row(name, len(questions), share, wilson_interval(share, len(questions)), blind_share)
