"""Wording of questions and answers: articles, plurals, lists, places."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from fastvlm_recipes.demo_data.canvas import SIZE

Turn = tuple[str, str]
REFUSAL = "There is no "  # how every answer begins to a question about what is not there

# Emoji answers that take no article: plurals and substances.
WITHOUT_ARTICLE: frozenset[str] = frozenset(
    [
        "grapes",
        "cherries",
        "pancakes",
        "fries",
        "jeans",
        "socks",
        "gloves",
        "glasses",
        "sunglasses",
        "scissors",
        "headphones",
        "dice",
        "corn",
        "broccoli",
        "bread",
        "cheese",
        "spaghetti",
        "sushi",
        "popcorn",
        "milk",
        "coffee",
        "wine",
        "beer",
        "candy",
        "pizza",
        "fire",
        "money",
        "soap",
        "trousers",
    ]
)


def with_article(name: str) -> str:
    """a dog, an apple, jeans."""
    if name in WITHOUT_ARTICLE:
        return name
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def plural(noun: str) -> str:
    """Such as stars, crosses."""
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"


def names_listed(names: Sequence[str]) -> str:
    """a dog, a cat and an apple."""
    said = [with_article(name) for name in names]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def sentence(text: str) -> str:
    """Capital first letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def it_is(what: str) -> str:
    """It is red. (The word follows a space, so it is one token of the mini's tokenizer.)"""
    return f"It is {what}."


def place_name(x: float, y: float) -> str | None:
    """Such as "top left" or "center"; None near a border between two thirds of the image."""
    column, row = _third(x), _third(y)
    if column is None or row is None:
        return None
    if row == 1 and column == 1:
        return "center"
    words = (("top", "", "bottom")[row], ("left", "", "right")[column])
    return " ".join(word for word in words if word)


def _third(position: float) -> int | None:
    third, margin = SIZE / 3, 14.0
    if any(abs(position - border) < margin for border in (third, 2 * third)):
        return None
    return min(2, max(0, int(position // third)))


def any_of(rng: Random, questions: Sequence[str]) -> str:
    """A random wording; 40 % in British spelling, 12 % in small letters or without the final mark."""
    question = rng.choice(questions)
    if rng.random() < 0.4:
        question = question.replace("color", "colour").replace("gray", "grey")
    if rng.random() < 0.12:
        question = question.lower() if rng.random() < 0.5 else question.rstrip("?.")
    return question


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
