"""POPE: does a model see what is not there? Yes or no, with yes as the positive class.

Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models (EMNLP 2023, arXiv 2305.10355),
section 5.1; how a free reply is read follows the authors' evaluation: only its first sentence counts, and it is "no" if
"no" or "not" is among its words.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.evaluation.judging import Judged, mean
from fastvlm.evaluation.questions import Question

__all__ = ["judge_yes_no", "read_yes_no"]

_NO = {"no", "not"}


def read_yes_no(reply: str) -> str:
    """``"yes"`` or ``"no"``."""
    first_sentence = reply.split(".", maxsplit=1)[0].replace(",", " ").lower()
    return "no" if _NO & set(first_sentence.split()) else "yes"


def judge_yes_no(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
    """F1 of "yes", with accuracy, precision, recall and the share of "yes" among the replies, all 0 to 1."""
    said = [read_yes_no(reply) == "yes" for reply in replies]
    true = [question.answers[0].strip().lower() == "yes" for question in questions]
    pairs = list(zip(said, true, strict=True))
    hits, alarms, misses = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    each = tuple(float(ours == theirs) for ours, theirs in pairs)
    figures = {
        "accuracy": mean(each),
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, hits + misses),
        "yes_ratio": mean([float(one) for one in said]),
    }
    return Judged(_share(2 * hits, 2 * hits + alarms + misses), each, figures, is_mean=False)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
