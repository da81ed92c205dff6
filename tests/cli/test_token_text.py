"""Streamed text never ends inside a character, and put together it is the whole text."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastvlm.cli.token_text import TokenText


class Tokens:
    """What `generate` hands to a streamer: something with `tolist`."""

    def __init__(self, ids: Iterable[int]):
        self.ids = list(ids)

    def tolist(self) -> list[int]:
        return self.ids


def stream(pieces: list[bytes], clock=lambda: 0.0) -> tuple[TokenText, list[str]]:
    """Each of `pieces` is one token; what was shown, one entry a call."""
    shown: list[str] = []

    def decode(ids) -> str:
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    text = TokenText(decode, shown.append, clock)
    text.put(Tokens([0, 0, 0]))  # the prompt
    for index in range(len(pieces)):
        text.put(Tokens([index]))
    text.end()
    return text, shown


@st.composite
def cut_texts(draw):
    """A text and its bytes cut into tokens anywhere, inside characters too."""
    text = draw(st.text(st.sampled_from("a .\n\t éß—你🙂👩‍🚀") | st.characters(exclude_categories=["Cs"]), max_size=40))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=20)) | {0, len(data)})
    return text, [data[a:b] for a, b in pairwise(cuts)]


@given(cut_texts())
def test_pieces_put_together_are_the_text(example):
    text, pieces = example
    streamed, shown = stream(pieces)
    assert "".join(shown) == text.strip() == streamed.text
    assert all(shown), "an empty piece was shown"


@given(cut_texts())
def test_no_piece_ends_inside_a_character(example):
    text, pieces = example
    _, shown = stream(pieces)
    assert ("\ufffd" in "".join(shown)) == ("\ufffd" in text)


@given(st.lists(st.binary(max_size=4), max_size=30))
def test_any_bytes_give_what_decoding_them_at_once_gives(pieces):
    _, shown = stream(pieces)
    assert "".join(shown) == b"".join(pieces).decode("utf-8", "replace").strip()


def test_a_character_of_four_tokens_is_shown_once_and_whole():
    data = "🙂".encode()
    _, shown = stream([b"Hi ", *(data[i : i + 1] for i in range(4)), b"!"])
    assert shown == ["Hi", " 🙂", "!"]


def test_text_is_shown_as_soon_as_it_is_whole():
    shown: list[str] = []
    text = TokenText(lambda ids: bytes(ids).decode("utf-8", "replace"), shown.append)
    text.put(Tokens([9, 9]))
    after_each = []
    for byte in "aé b".encode():
        text.put(Tokens([byte]))
        after_each.append("".join(shown))
    assert after_each == ["a", "a", "aé", "aé", "aé b"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    _, shown = stream([b"ok", b"\xe2\x82"])
    assert shown == ["ok", "\ufffd"]


def test_a_decoder_that_drops_leading_spaces_keeps_the_spaces_between_words():
    words = {1: "A", 2: "red", 3: "circle"}
    shown: list[str] = []
    text = TokenText(lambda ids: " ".join(words[i] for i in ids), shown.append)
    text.put(Tokens([7]))
    for token in (1, 2, 3):
        text.put(Tokens([token]))
    text.end()
    assert "".join(shown) == "A red circle"


def test_moments_are_stamped_at_tokens_and_at_the_first_visible_text():
    ticks = iter(range(1, 100))
    text, _ = stream([b"\n", b"\xc3", b"\xa9", b"x"], clock=lambda: float(next(ticks)))
    assert text.token_times_s == [1.0, 2.0, 3.0, 5.0]
    assert text.first_text_s == 4.0, "right after the third token, which completed the first character"


def test_nothing_visible_gives_no_first_text():
    text, shown = stream([b" ", b"\n"])
    assert (text.text, shown, text.first_text_s) == ("", [], None)
    assert text.token_ids == [0, 1]
