"""Strings to draw: random letters, training words, numbers, prices. Held-out words never come from here."""

from __future__ import annotations

import string
from random import Random

from fastvlm_recipes.demo_data.vocabulary import ALPHANUMERIC
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS, LONGER_TRAIN_WORDS, TRAIN_WORDS

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
MOSTLY_CAPITALS = string.ascii_uppercase * 4 + string.ascii_lowercase * 2 + string.digits * 3


def cased(rng: Random, word: str) -> str:
    """CAPITALS, small or Title."""
    roll = rng.random()
    if roll < 0.5:
        return word.upper()
    return word if roll < 0.8 else word.capitalize()


def syllables(rng: Random, length: int) -> str:
    """A made-up word that can be spoken, of `length` letters."""
    start = rng.random() < 0.7
    return "".join(rng.choice(CONSONANTS if (index % 2 == 0) == start else VOWELS) for index in range(length))


def made_up(rng: Random, length: int) -> str:
    """Random letters, a made-up word, or a real one of this length: never a held-out word."""
    while True:
        roll = rng.random()
        if roll < 0.4:
            word = "".join(rng.choices(string.ascii_lowercase, k=length))
        elif roll < 0.75:
            word = syllables(rng, length)
        else:
            word = rng.choice([word for word in TRAIN_WORDS if len(word) == length] or [syllables(rng, length)])
        if word not in HELD_OUT_WORDS:
            return word


def random_characters(rng: Random, length: int) -> str:
    """Letters of both cases and digits; never a held-out word."""
    while True:
        text = "".join(rng.choices(ALPHANUMERIC, k=length))
        if text.casefold() not in HELD_OUT_WORDS:
            return text


def number(rng: Random) -> str:
    """1 to 4 digits."""
    return "".join(rng.choices(string.digits, k=rng.choices((1, 2, 3, 4), (2, 4, 3, 2))[0]))


def price(rng: Random) -> str:
    """Such as $4.99 or €12."""
    sign, whole = rng.choice("$$$€£"), rng.randint(1, rng.choice((9, 99)))
    return (
        f"{sign}{whole}"
        if rng.random() < 0.3
        else f"{sign}{whole}.{rng.choice(('99', '50', '00', '25', '95', str(rng.randint(10, 99))))}"
    )


def single(rng: Random) -> str:
    """One letter or digit, capitals more often."""
    return rng.choice(MOSTLY_CAPITALS)


def token(rng: Random, length: int) -> str:
    """A word of `length` characters as it is drawn."""
    if length == 1:
        return single(rng)
    roll = rng.random()
    if roll < 0.1:
        return "".join(rng.choices(string.digits, k=length))
    if roll < 0.18:
        return random_characters(rng, length)
    return cased(rng, made_up(rng, length))


def longer(rng: Random, length: int) -> str:
    """A word of `length` letters for the second edition, real more often: never a held-out one."""
    real = [word for word in (*TRAIN_WORDS, *LONGER_TRAIN_WORDS) if len(word) == length]
    return cased(rng, rng.choice(real)) if real and rng.random() < 0.5 else token(rng, length)


def held_out(rng: Random, shortest: int = 3, longest: int = 8) -> str:
    """A word that training never shows; every length from `shortest` to `longest` (3 to 8) equally often."""
    length = rng.randint(shortest, longest)
    return cased(rng, rng.choice([word for word in sorted(HELD_OUT_WORDS) if len(word) == length]))


def amount(rng: Random, most: int = 19) -> int:
    """A price in hundredths: often a round one."""
    return 100 * rng.randint(0, most) + rng.choice((0, 50, 99, 25, 75, 95, rng.randint(1, 99))) or 100
