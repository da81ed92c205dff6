"""Streamed text never ends inside a character or a stop string, and put together it is the whole text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastvlm.engine.detokenizer import Detokenizer


def stream(pieces: list[bytes], stops=(), **settings) -> tuple[Detokenizer, list[str]]:
    """Each of `pieces` is one token; what was shown, one entry a token that showed something."""

    def decode(ids) -> str:
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    text = Detokenizer(decode, stops, **settings)
    shown = []
    for index in range(len(pieces)):
        shown.append(text.put(index))
        if text.stop_string is not None:
            break
    shown.append(text.end())
    return text, [piece for piece in shown if piece]


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


@given(cut_texts())
def test_white_space_at_both_ends_may_be_kept(example):
    text, pieces = example
    streamed, shown = stream(pieces, keeps_space=True)
    assert "".join(shown) == text == streamed.text


@given(cut_texts())
def test_no_piece_ends_inside_a_character(example):
    text, pieces = example
    _, shown = stream(pieces)
    assert ("\ufffd" in "".join(shown)) == ("\ufffd" in text)


@given(st.lists(st.binary(max_size=4), max_size=30))
def test_any_bytes_give_what_decoding_them_at_once_gives(pieces):
    _, shown = stream(pieces)
    assert "".join(shown) == b"".join(pieces).decode("utf-8", "replace").strip()


@given(cut_texts(), st.lists(st.sampled_from(["a", "é", "🙂", " .", "\n", "aé"]), min_size=1, max_size=3))
def test_no_part_of_a_stop_string_is_shown(example, stops):
    text, pieces = example
    streamed, shown = stream(pieces, stops)
    starts = [text.find(stop) for stop in stops if stop in text]
    assert (streamed.stop_string is not None) == bool(starts)
    assert "".join(shown) == streamed.text
    if len(stops) == 1:
        assert streamed.text == text[: starts[0] if starts else None].strip()
    assert all(text.strip().startswith(piece) for piece in shown[:1])
    assert not any(stop.strip() and stop in streamed.text for stop in stops)


def test_a_character_of_four_tokens_is_shown_once_and_whole():
    data = "🙂".encode()
    _, shown = stream([b"Hi ", *(data[i : i + 1] for i in range(4)), b"!"])
    assert shown == ["Hi", " 🙂", "!"]


def test_text_is_shown_as_soon_as_it_is_whole():
    text = Detokenizer(lambda ids: bytes(ids).decode("utf-8", "replace"))
    after_each = []
    for byte in "aé b".encode():
        text.put(byte)
        after_each.append(text.text)
    assert after_each == ["a", "a", "aé", "aé", "aé b"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    _, shown = stream([b"ok", b"\xe2\x82"])
    assert shown == ["ok", "\ufffd"]


def test_a_stop_string_across_tokens_and_inside_characters():
    data = "Ja—Nein—".encode()
    text, shown = stream([data[i : i + 1] for i in range(len(data))], stops=["—N"])
    assert text.stop_string is not None and "".join(shown) == "Ja"


def test_a_stop_string_of_white_space():
    text, shown = stream([b"One.", b"\n", b"\n", b"Two."], stops=["\n\n"])
    assert text.stop_string is not None and shown == ["One."]


def test_a_decoder_that_drops_leading_spaces_keeps_the_spaces_between_words():
    words = {1: "A", 2: "red", 3: "circle"}
    text = Detokenizer(lambda ids: " ".join(words[i] for i in ids))
    assert [text.put(token) for token in (1, 2, 3)] == ["A", " red", " circle"]
    assert text.end() == "" and text.text == "A red circle"


def test_nothing_visible_gives_no_text():
    text, shown = stream([b" ", b"\n"])
    assert (text.text, shown, text.token_ids) == ("", [], [0, 1])
