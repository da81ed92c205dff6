"""POPE: yes/no questions about objects, with yes as the positive class.

Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models (EMNLP 2023, arXiv 2305.10355),
section 5.1; how a free reply is read follows the authors' evaluation: only its first sentence counts, and it is "no" if
"no" or "not" is among its words.

One thing differs: punctuation next to a word is ignored. The authors' code splits at blanks and removes commas only, so
that it reads "No!", "**No**" and "(no)" as "yes".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from fastvlm.evaluation.metrics.metric import Judged
from fastvlm.evaluation.questions import Question

_NO = {"no", "not"}
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")  # "isn't" and "no-one" are one word each, as at the authors'


def read_yes_no(reply: str) -> str:
    """Convert a reply to ``"yes"`` or ``"no"``."""
    first_sentence = reply.split(".", maxsplit=1)[0].lower()
    return "no" if _NO & set(_WORD.findall(first_sentence)) else "yes"


def yes_no_problem(question: Question) -> str | None:
    """The reason why a question cannot be judged (its answer is neither yes nor no), or None."""
    if _true_answer(question) in {"yes", "no"}:
        return None
    return f"the question {question.id!r} has the answer {question.answers[0]!r}; this metric needs yes or no"


def _true_answer(question: Question) -> str:
    return question.answers[0].strip(" .!").lower()


def judge_yes_no(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
    """F1 of "yes", with accuracy, precision, recall and the share of "yes" among the replies, all 0 to 1."""
    said = [read_yes_no(reply) == "yes" for reply in replies]
    pairs = [(reply, _true_answer(question) == "yes") for reply, question in zip(said, questions, strict=True)]
    hits, alarms, misses = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    each = tuple(float(ours == theirs) for ours, theirs in pairs)
    figures = {
        "accuracy": fmean(each),
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, hits + misses),
        "yes_ratio": fmean(said),
    }
    return Judged(_share(2 * hits, 2 * hits + alarms + misses), each, figures, is_mean=False)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
