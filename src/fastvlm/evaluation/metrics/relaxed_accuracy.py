"""ChartQA's relaxed accuracy: numbers within 5 %, other answers exact.

Source: Masry et al., ChartQA (Findings of ACL 2022, arXiv 2203.10244), section 5.1, after Methani et al., PlotQA (WACV
2020, arXiv 1909.00997). As in the scripts in use, "12%" is 0.12, and a true 0 has to be met exactly.
"""

from __future__ import annotations

import math

from fastvlm.evaluation.questions import Question

TOLERANCE = 0.05


def as_number(text: str) -> float | None:
    """Parse a finite number (a percentage as its hundredth); None for anything else."""
    text = text.strip()
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def relaxed_accuracy(reply: str, question: Question) -> float:
    """1 if the reply is within 5 % of an answer, or equal to it ignoring case; else 0."""
    return float(any(_is_near(reply, answer) for answer in question.answers))


def _is_near(reply: str, answer: str) -> bool:
    said, true = as_number(reply), as_number(answer)
    if said is not None and true:
        return abs(said - true) <= TOLERANCE * abs(true)
    return reply.strip().lower() == answer.strip().lower()
