"""Judging answers and the certainty of scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.mini.scoring import (
    Score,
    character_error_rate,
    edit_distance,
    is_right,
    majority,
    normalized,
    score,
)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("A dog.", ("dog",)),
        ("It is red.", ("red",)),
        ("It is a star.", ("star",)),
        ("YES", ("yes",)),
        ("grey", ("gray",)),
        (" 3 ", ("3",)),
        ("Cat", ("CAT",)),
        ("an apple", ("apple",)),
    ],
)
def test_answers_that_mean_the_same_are_right(answer: str, accepted: tuple[str, ...]) -> None:
    assert is_right(answer, accepted)


@pytest.mark.parametrize(
    ("answer", "accepted"), [("dogs", ("dog",)), ("", ("a",)), ("13", ("3",)), ("a red dog", ("dog",))]
)
def test_answers_that_do_not_are_wrong(answer: str, accepted: tuple[str, ...]) -> None:
    assert not is_right(answer, accepted)


def test_a_lone_letter_is_no_article() -> None:
    assert normalized("A") == "a"
    assert is_right("a", ("A",))


def test_edit_distance_and_character_error_rate() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert character_error_rate(["cat", "dug"], ["CAT", "dog"]) == pytest.approx(1 / 6)


@given(st.text(max_size=8), st.text(max_size=8))
def test_edit_distance_is_symmetric_and_bounded(first: str, second: str) -> None:
    distance = edit_distance(first, second)
    assert distance == edit_distance(second, first)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))


@given(n=st.integers(1, 2000), data=st.data())
def test_the_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    result = Score(data.draw(st.integers(0, n)), n)
    low, high = result.interval()
    assert 0.0 <= low <= result.share + 1e-9
    assert result.share - 1e-9 <= high <= 1.0


def test_wilson_against_a_published_value() -> None:
    low, high = Score(8, 10).interval()
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


def test_majority_is_the_commonest_answer() -> None:
    accepted = [("Yes",), ("yes",), ("No",)]
    assert majority(accepted).share == pytest.approx(2 / 3)
    assert score(["yes", "no", "no"], accepted).right == 2
