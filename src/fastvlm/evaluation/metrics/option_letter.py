"""Multiple choice: extraction of the option letter from a reply (MMMU, ScienceQA, SEED-Bench, AI2D).

Source: Yue et al., MMMU (CVPR 2024, arXiv 2311.16502), section 4.1: the letter is looked for by rules, then the
option's own text, and MMMU's free answers by number or phrase. Where nothing is found MMMU draws an option at random;
here the reply is wrong, so that a score can be repeated and a model gains nothing by not answering.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastvlm.evaluation.questions import Question, letters_for

# "B", "(B)", "B.", "**B**", "B: a dog"; not "A dog", whose A is an article.
_FIRST = re.compile(r"[\W_]*([A-Z])(?=$|\s*[).:,\]*\n]|\s*$)")
_FIRST_PLAIN = re.compile(r"[\W_]*([B-HJ-Z])\s")
_FIRST_SMALL = re.compile(r"[\W_]*([a-z])(?=[).:\]*]+(?:\s|$))")  # "b) a cat"; not "e.g. a cat"
_BRACKETED = re.compile(r"(?<!\w)\(([A-Za-z])\)")  # not "cat(s)"
_ANNOUNCED = re.compile(r"\b(?i:answer|option|choice)\b(?: is| would be)?[\s:=*_(\"'`]*")
_LETTER = re.compile(r"([A-Za-z])(?![^\W_]|['\u2019-])")
_CLOSED = re.compile(r"[A-Za-z]\s*(?:$|[^\w\s]|_|\n)")
_ARTICLES = "AaIi"  # an article and a pronoun too
_SMALL = re.compile(r"\W*([a-z])\W*")
_ALONE = re.compile(r"(?<![\w'])([B-HJ-Z])(?![\w'])")  # neither the article A nor the pronoun I
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def read_letter(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the option that `reply` chooses, or None.

    In this order: a letter that the reply begins with; the last letter in brackets; the last after "answer", "option"
    or "choice"; a lone small letter; the one option whose text is the reply, or is in it; the one capital letter that
    stands alone. A small letter counts where a mark closes it, and after "answer" unless it may be an article.
    """
    letters, text = letters_for(choices), reply.strip()
    for pattern in (_FIRST, _FIRST_PLAIN, _FIRST_SMALL):
        found = pattern.match(text)
        if found and found[1].upper() in letters:
            return found[1].upper()
    bracketed: list[str] = [letter.upper() for letter in _BRACKETED.findall(text) if letter.upper() in letters]
    if bracketed:
        return bracketed[-1]
    announced = [letter for found in _ANNOUNCED.finditer(text) if (letter := _announced(text[found.end() :], choices))]
    if announced:
        return announced[-1]
    small = _SMALL.fullmatch(text)
    if small and small[1].upper() in letters:
        return small[1].upper()
    return _by_text(text, choices) or _only([letter for letter in _ALONE.findall(text) if letter in letters])


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    """The letter after "answer"; if it may be an article, an option text that begins there takes precedence."""
    found, letters = _LETTER.match(rest), letters_for(choices)
    if found is None or found[1].upper() not in letters:
        return None
    if _CLOSED.match(rest) or found[1] not in _ARTICLES:
        return found[1].upper()
    if found[1].islower():
        return None
    said = _words(rest)
    begun = [pair for pair in zip(map(_words, choices), letters, strict=True) if f"{said} ".startswith(f"{pair[0]} ")]
    return max(begun, key=lambda pair: len(pair[0]))[1] if begun else found[1]


def _by_text(reply: str, choices: Sequence[str]) -> str | None:
    """Letter of the only option whose text is in the reply; an option contained in a longer one does not count."""
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
    """1 if the reply chooses a correct option or, without options, contains the answer; else 0."""
    if question.choices:
        return float(read_letter(reply, question.choices) in question.answers)
    return float(any(_gives(reply, answer) for answer in question.answers))


def _gives(reply: str, answer: str) -> bool:
    """MMMU's open answers: the reply contains the answer, or its number rounded to two decimals."""
    bare = answer.strip().replace(",", "")
    if _NUMBER.fullmatch(bare):
        numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d)", "", reply))
        return any(round(float(number), 2) == round(float(bare), 2) for number in numbers)
    return _holds(_words(reply), _words(answer))
