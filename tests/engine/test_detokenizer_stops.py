"""Stop strings that come in pieces are found, and no part of them is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.engine.detokenizer import StopStrings

letters = st.text("ab.", max_size=12)


def run(stops, pieces):
    stop = StopStrings(stops)
    shown = [stop.put(piece) for piece in pieces]
    shown.append("" if stop.is_hit else stop.end())
    return shown, stop.is_hit


def expected(stops, text):
    """The slow way: the whole text so far is searched after each letter."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)], True
    return text, False


@given(letters, st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_letter_by_letter(text, stops):
    shown, is_hit = run(stops, text)
    assert ("".join(shown), is_hit) == expected(stops, text)


@given(st.lists(letters, max_size=8), st.text("ab.", min_size=1, max_size=4))
def test_however_the_text_is_cut(pieces, stop):
    shown, is_hit = run([stop], pieces)
    assert ("".join(shown), is_hit) == expected([stop], "".join(pieces))


@given(st.lists(letters, max_size=8), st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_shown_is_taken_back_and_no_more_is_held_than_needed(pieces, stops):
    stop, shown, text = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        shown += stop.put(piece)
        if stop.is_hit:
            break
        assert text.startswith(shown)
        held = text[len(shown) :]
        assert held == "" or any(one.startswith(held) for one in stops)


def test_what_may_be_a_beginning_is_held_back_until_it_is_none():
    stop = StopStrings(["\n\nUser:"])
    assert [stop.put(piece) for piece in ("Yes.", "\n", "\nUs", "ing")] == ["Yes.", "", "", "\n\nUsing"]
    assert not stop.is_hit


def test_without_stop_strings_nothing_is_held():
    assert run([], ["a", "b"]) == (["a", "b", ""], False)


def test_nothing_comes_after_a_hit():
    stop = StopStrings(["."])
    assert (stop.put("a.b"), stop.put("c"), stop.end()) == ("a", "", "")


@pytest.mark.parametrize(("stops", "shown"), [(["bc", "b"], "a"), (["bcd", "c"], "ab")])
def test_the_one_complete_first_wins(stops, shown):
    assert "".join(run(stops, "abcd")[0]) == shown
