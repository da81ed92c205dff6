"""Lines of a terminal break between words, however the text is cut into pieces."""

import io
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fastvlm.cli.terminal import Answers
from fastvlm.cli.wrapping import WordWrap

TEXT = st.text(st.sampled_from("ab \n你🙂é-"), max_size=60)


def wrapped(text: str, width: int, pieces: int = 1) -> str:
    wrap = WordWrap(lambda: width)
    return "".join(wrap.add(text[i : i + pieces]) for i in range(0, len(text), pieces)) + wrap.end()


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("A red star and a moon.", 10, "A red star\nand a\nmoon."),
        ("A red star", 10, "A red star"),
        ("  indented, twice  as wide", 12, "  indented,\ntwice  as\nwide"),
        ("one\n\ntwo \nthree", 80, "one\n\ntwo\nthree"),
        ("see https://example.org/a/b/c now", 10, "see\nhttps://example.org/a/b/c now"),
        ("一二三四五六", 8, "一二三四\n五六"),
        ("x 👩\N{ZERO WIDTH JOINER}🚀 y", 80, "x 👩\N{ZERO WIDTH JOINER}🚀 y"),
        ("a\tb", 80, "a       b"),
    ],
)
def test_examples(text, width, shown):
    assert wrapped(text, width) == wrapped(text, width, 100) == shown


@given(TEXT, st.integers(1, 30), st.integers(1, 7))
def test_pieces_make_no_difference_and_only_space_changes(text, width, pieces):
    shown = wrapped(text, width, pieces)
    assert shown == wrapped(text, width)
    assert "".join(shown.split()) == "".join(text.split())


@given(st.lists(st.text("abc-", min_size=1, max_size=8), min_size=1), st.integers(8, 40))
def test_lines_fit_and_are_filled_with_words(words, width):
    lines = wrapped(" ".join(words), width).split("\n")
    assert [word for line in lines for word in line.split(" ")] == words
    assert all(cell_len(line) <= width for line in lines)
    for line, following in pairwise(lines):
        assert cell_len(line) + 1 + cell_len(following.split(" ")[0]) > width, "the next word would have fitted"


def test_a_long_word_does_not_wait_for_its_end():
    wrap = WordWrap(lambda: 10)
    assert wrap.add("0123456789") == "0123456789" and wrap.add("abc") == "" and wrap.end() == "abc"


def test_a_terminal_gets_lines_and_a_pipe_the_text_as_it_is(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "10")
    text = "A red star and a moon."
    for stream, shown in ((Terminal(), "A red star\nand a\nmoon."), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", stream)
        answers = Answers()
        answers.write(text)
        answers.cut()
        assert stream.getvalue() == shown
