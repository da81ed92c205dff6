"""VQA accuracy: agreement of a reply with the annotators.

Source: Antol et al., VQA: Visual Question Answering (ICCV 2015, arXiv 1505.00468), section 3, and the evaluation page
https://visualqa.org/evaluation.html: the mean over all ways to leave one annotator out of min(others who agree / 3, 1),
after both sides have been brought to one spelling. TextVQA takes it over (Singh et al., CVPR 2019, arXiv 1904.08920).

Replies and answers are always brought to one spelling, as the EvalAI server does; the older offline script leaves
unanimous answers as they are. The list of contractions is ours, made by the page's rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastvlm.evaluation.questions import Question

_ENOUGH = 3  # annotators who agree make a reply right
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither the apostrophe (possessives) nor the colon (times of day)
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # no decimal point
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {**{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}, "none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd've he's how'd how'll "
    "how's i'd've i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock "
    "shan't she'd've she's should've shouldn't somebody'll somebody's someone'll someone's something'll "
    "something's that'd that'll that's there'd there're there's they'd they'll they're they've wasn't we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll "
    "why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}


def one_spelling(text: str) -> str:
    """Official normalization: lower case, no punctuation and articles, digits for numbers up to ten, apostrophes."""
    words = _without_punctuation(" ".join(text.split())).lower().split()
    spelt = [_NUMBERS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in spelt)


def _without_punctuation(text: str) -> str:
    """Remove marks next to a space, replace others by a space; remove all if there is a number such as 1,000."""
    result = text
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        stands_alone = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if stands_alone or has_digit_comma else " ")
    return _PERIOD.sub("", result)


def agreement(reply: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(number of others with this reply / 3, 1), 0 to 1.

    With ten annotators it is 0, 0.3, 0.6, 0.9 and 1 for none to four who agree. Where there are fewer than four, all
    others have to agree; a lone annotator decides.
    """
    if len(answers) == 1:
        return float(reply == answers[0])
    matches = sum(answer == reply for answer in answers)
    enough = min(_ENOUGH, len(answers) - 1)
    one_of_them_left_out = min(1.0, (matches - 1) / enough)
    another_left_out = min(1.0, matches / enough)
    return (matches * one_of_them_left_out + (len(answers) - matches) * another_left_out) / len(answers)


def vqa_accuracy(reply: str, question: Question) -> float:
    """Agreement of the annotators with the reply, after normalization."""
    return agreement(one_spelling(reply), [one_spelling(answer) for answer in question.answers])
