"""Multiple choice: which option a reply means (MMMU, ScienceQA, SEED-Bench, AI2D).

Source: Yue et al., MMMU (CVPR 2024, arXiv 2311.16502), section 4.1: the letter is looked for by rules, then the
option's own text, and MMMU's free answers by number or phrase. Where nothing is found MMMU draws an option at random;
here the reply is wrong, so that a score can be repeated and a model gains nothing by not answering.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastvlm.evaluation.questions import Question, letters_for

__all__ = ["choice_accuracy", "read_letter"]

# "B", "(B)", "B.", "**B**", "B: a dog"; not "A dog", whose A is an article.
_FIRST = re.compile(r"[\W_]*([A-Z])(?=$|\s*[).:,\]*\n]|\s*$)")
_FIRST_PLAIN = re.compile(r"[\W_]*([B-HJ-Z])\s")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_ANNOUNCED = re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?: is| would be)?[\s:*(\"']*([A-Z])\b(?!')")
_SMALL = re.compile(r"\W*([a-z])\W*")
_ALONE = re.compile(r"(?<![\w'])([B-HJ-Z])(?![\w'])")  # neither the article A nor the pronoun I
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def read_letter(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that `reply` means; None if it is not to be seen.

    In this order: a letter that the reply begins with; the last letter in brackets; the last after "answer", "option"
    or "choice"; a lone small letter; the one option whose text is the reply, or is in it; the one capital letter that
    stands alone.
    """
    letters, text = letters_for(choices), reply.strip()
    for found in (_FIRST.match(text), _FIRST_PLAIN.match(text)):
        if found and found[1] in letters:
            return found[1]
    for pattern in (_BRACKETED, _ANNOUNCED):
        known = [letter for letter in pattern.findall(text) if letter in letters]
        if known:
            return str(known[-1])
    small = _SMALL.fullmatch(text)
    if small and small[1].upper() in letters:
        return small[1].upper()
    return _by_text(text, choices) or _only([letter for letter in _ALONE.findall(text) if letter in letters])


def _by_text(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option that is said; an option inside a longer one that is said does not count."""
    said, options = _words(reply), [_words(choice) for choice in choices]
    letters = letters_for(choices)
    equal = [letter for letter, option in zip(letters, options, strict=True) if option and option == said]
    if equal:
        return _only(equal)
    within = [(letter, option) for letter, option in zip(letters, options, strict=True) if _holds(said, option)]
    return _only(
        [
            letter
            for letter, option in within
            if not any(option != other and _holds(other, option) for _, other in within)
        ]
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+|[^\w\s]", text.lower())).rstrip(" .")


def _holds(text: str, part: str) -> bool:
    return bool(part) and f" {part} " in f" {text} "


def _only(letters: Sequence[str]) -> str | None:
    return letters[0] if len(set(letters)) == 1 else None


def choice_accuracy(reply: str, question: Question) -> float:
    """1 if the reply means a right option, or, where there are no options, gives the answer; else 0."""
    if question.choices:
        return float(read_letter(reply, question.choices) in question.answers)
    return float(any(_gives(reply, answer) for answer in question.answers))


def _gives(reply: str, answer: str) -> bool:
    """MMMU's free answers: a number of the reply is the answer to two decimals, or the reply has the answer in it."""
    bare = answer.strip().replace(",", "")
    if _NUMBER.fullmatch(bare):
        numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d)", "", reply))
        return any(round(float(number), 2) == round(float(bare), 2) for number in numbers)
    return _holds(_words(reply), _words(answer))
