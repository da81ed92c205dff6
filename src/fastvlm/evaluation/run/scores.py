"""Score table: score, interval, blind score and majority score of each test."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fastvlm.evaluation.metrics.metric import Metric, wilson_interval
from fastvlm.evaluation.metrics.text_match import normalized
from fastvlm.evaluation.questions import Question
from fastvlm.evaluation.run.predictions import Prediction

REFUSAL = "there is no"  # beginning of the mini's reply to a question without an answer


@dataclass(frozen=True)
class Row:
    """A row of the score table; scores are 0 to 1 except for CIDEr.

    Args:
        test, n: its name and its number of questions.
        score: over all questions; those that could not be asked count as an empty reply.
        interval: 95 % confidence interval; None if the score is not a mean.
        blind: score of the replies to the same questions about a gray image; None if they were not asked.
        majority: score of always giving the commonest answer.
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


def by_test(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Group questions by test, in order."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.test].append(question)
    return dict(groups)


def draw_sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
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
    """One row a test, judged by `metric`.

    Args:
        questions: all that were to be asked.
        seen: predictions by the question's id.
        blind: replies to the gray images by the question's id; None if they were not asked.
        metric: of all tests.
    """
    rows = []
    for test, group in by_test(questions).items():
        predictions = [seen[question.id] for question in group]
        judged = metric.judge([one.reply for one in predictions], group)
        row = Row(
            test=test,
            n=len(group),
            score=judged.score,
            interval=wilson_interval(judged.score, len(judged.each)) if judged.is_mean else None,
            blind=None if blind is None else metric.judge([blind[question.id] for question in group], group).score,
            majority=metric.judge([commonest_answer(group)] * len(group), group).score,
            figures=judged.figures,
            num_failed=sum(one.error is not None for one in predictions),
            each=judged.each,
        )
        rows.append(row)
    return rows


def commonest_answer(questions: Sequence[Question]) -> str:
    """The single reply that is correct for most questions; the first of several.

    The answer of a question is the one that most of its annotators gave.
    """
    answers = [Counter(map(normalized, question.answers)).most_common(1)[0][0] for question in questions]
    commonest = Counter(answers).most_common(1)[0][0]
    written = (answer for question in questions for answer in question.answers if normalized(answer) == commonest)
    return next(written)


def mean_row(name: str, rows: Sequence[Row]) -> Row:
    """Unweighted mean of several tests' scores, as reported for POPE and ChartQA."""
    return Row(
        test=name,
        n=sum(row.n for row in rows),
        score=fmean(row.score for row in rows),
        blind=_mean([row.blind for row in rows]),
        majority=_mean([row.majority for row in rows]),
        num_failed=sum(row.num_failed for row in rows),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def refusal_rows(
    questions: Sequence[Question], seen: Mapping[str, Prediction], blind: Mapping[str, str] | None
) -> list[Row]:
    """Rows for unanswerable questions of the mini suite: correct refusals and false refusals.

    ``unanswerable_refused`` is the share of refusals among questions whose answer is a refusal, ``false_refusals``
    among the others (less is better). No rows without unanswerable questions.
    """
    groups: dict[str, list[Question]] = {"unanswerable_refused": [], "false_refusals": []}
    for question in questions:
        groups["unanswerable_refused" if _is_refusal(question.answers[0]) else "false_refusals"].append(question)
    if not groups["unanswerable_refused"]:
        return []
    rows = []
    for name, group in groups.items():
        if group:
            share = fmean(_is_refusal(seen[question.id].reply) for question in group)
            blind_share = None if blind is None else fmean(_is_refusal(blind[question.id]) for question in group)
            rows.append(Row(name, len(group), share, wilson_interval(share, len(group)), blind_share))
    return rows


def _is_refusal(text: str) -> bool:
    return normalized(text).startswith(REFUSAL)
