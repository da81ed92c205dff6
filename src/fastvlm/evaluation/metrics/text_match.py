"""String metrics: exact match, ANLS, character error rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from fastvlm.evaluation.metrics.metric import Judged
from fastvlm.evaluation.questions import Question

ANLS_THRESHOLD = 0.5
_OUTER_MARKS = (
    " .!?,:;\"'`*_()[]\u201c\u201d\u2018\u2019"  # punctuation, quotes and Markdown; no signs of a number: $, %, -, +
)


def normalized(text: str) -> str:
    """Lower case without "it is", articles, outer punctuation and repeated spaces, in American spelling."""
    text = re.sub(r"\s+", " ", text.strip().casefold())
    text = text.strip(_OUTER_MARKS) or text
    text = re.sub(r"^it is ", "", text)
    text = re.sub(r"^(a|an|the) ", "", text)
    return text.replace("colour", "color").replace("grey", "gray")


def exact_match(reply: str, question: Question) -> float:
    """1 if the reply equals an answer after normalization; else 0."""
    return float(normalized(reply) in {normalized(answer) for answer in question.answers})


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance of two strings."""
    row = list(range(len(second) + 1))
    for index, left in enumerate(first, 1):
        diagonal, row[0] = row[0], index
        for column, right in enumerate(second, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (left != right))
    return row[-1]


def similarity(reply: str, answer: str) -> float:
    """1 - edit distance / length of the longer string, ignoring case and repeated spaces."""
    first, second = (" ".join(text.casefold().split()) for text in (reply, answer))
    longest = max(len(first), len(second))
    return 1.0 if longest == 0 else 1 - edit_distance(first, second) / longest


def anls(reply: str, question: Question) -> float:
    """Similarity to the nearest answer, or 0 if it is below one half.

    Source: Biten et al., Scene Text Visual Question Answering (ICCV 2019, arXiv 1905.13648), equation 1, tau = 0.5; of
    DocVQA by Mathew et al. (WACV 2021, arXiv 2007.00398), section 5.1. A normalized distance NL counts if NL < tau.
    """
    best = max(similarity(reply, answer) for answer in question.answers)
    return best if 1 - best < ANLS_THRESHOLD else 0.0


def judge_characters(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
    """Character error rate over all replies against the nearest answers, ignoring case.

    Each reply's own score is 1 - edits / characters, at least 0. More edits than characters are possible: the rate may
    be above 1.

    Source: S. V. Rice, Measuring the Accuracy of Page-Reading Systems (UNLV, 1996), section 2.1, as an error rate.
    """
    nearest = [_nearest(reply, question) for reply, question in zip(replies, questions, strict=True)]
    edits, characters = (sum(column) for column in zip(*nearest, strict=True))
    each = tuple(max(0.0, 1 - wrong / max(1, length)) for wrong, length in nearest)
    exact = fmean(wrong == 0 for wrong, _ in nearest)
    return Judged(edits / max(1, characters), each, {"exact": exact}, is_mean=False)


def _nearest(reply: str, question: Question) -> tuple[int, int]:
    """(edit distance to the nearest answer, its length)."""
    pairs = [(edit_distance(reply.casefold(), answer.casefold()), len(answer)) for answer in question.answers]
    return min(pairs, key=lambda pair: (pair[0] / max(1, pair[1]), pair))
