"""Summary of a run: a JSON object and a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastvlm.evaluation.metrics.metric import Metric
from fastvlm.evaluation.run.benchmark_run import Result
from fastvlm.evaluation.run.published_figures import PublishedFigure
from fastvlm.evaluation.run.scores import Row

_DIGITS = 4


def summary(
    about: Mapping[str, Any], result: Result, rows: Sequence[Row], metric: Metric, published: Sequence[PublishedFigure]
) -> dict[str, Any]:
    """The summary as JSON values; scores from 0 to 1, rounded to four digits.

    Args:
        about: task, model and settings.
        result: of the run.
        rows: of the tests, and rows made of them (their mean, refusals).
        metric: of the task.
        published: the authors' figures for this checkpoint and task.
    """
    return {
        **about,
        "metric": {"name": metric.name, "label": metric.label, "source": metric.source, "is_error": metric.is_error},
        "scores": {row.test: _rounded(row.score) for row in rows},
        "blind": {row.test: _rounded(row.blind) for row in rows if row.blind is not None},
        "majority": {row.test: _rounded(row.majority) for row in rows if row.majority is not None},
        "n": {row.test: row.n for row in rows},
        "intervals": {row.test: [_rounded(end) for end in row.interval] for row in rows if row.interval is not None},
        "figures": {
            row.test: {name: _rounded(value) for name, value in row.figures.items()} for row in rows if row.figures
        },
        "published": [{"score": figure.score, "source": figure.source} for figure in published],
        "failed": sum(one.error is not None for one in result.seen.values()),
        "cut_off": sum(one.finish_reason == "length" for one in result.seen.values()),
        "resumed": result.num_kept,
        "seconds": round(result.seconds, 1),
        "questions_per_s": round(result.num_asked / result.seconds, 2) if result.seconds > 0 else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)


def as_table(rows: Sequence[Row], metric: Metric, published: Sequence[PublishedFigure]) -> str:
    """The scores as a Markdown table, in percent except for CIDEr."""
    factor, unit = (1.0, "") if metric.name == "cider" else (100.0, " %")
    lines = [
        f"| test | n | {metric.label}{unit} | 95 % interval | blind | majority | |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        interval = "" if row.interval is None else "-".join(f"{factor * end:.1f}" for end in row.interval)
        cells = [f"{row.n}", _number(row.score, factor), interval, _number(row.blind, factor)]
        notes = [f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in row.figures.items()]
        notes += [f"{row.num_failed} could not be asked"] if row.num_failed else []
        lines.append(f"| {row.test} | {' | '.join(cells)} | {_number(row.majority, factor)} | {', '.join(notes)} |")
    lines += [f"\nPublished: {100 * figure.score:.1f} % ({figure.source})" for figure in published]
    return "\n".join(lines)


def _number(value: float | None, factor: float) -> str:
    digits = 3 if factor == 1 else 1
    return "" if value is None else f"{factor * value:.{digits}f}"
