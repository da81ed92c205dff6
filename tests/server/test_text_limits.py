"""A text that is refused by its length alone would have had too many tokens."""

import unicodedata

import parrot
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance.hf import from_tokenizer

import fastvlm
from fastvlm.server.http.errors import ApiError
from fastvlm.server.text_limits import TextLimits


@pytest.fixture(scope="module")
def tokenizer():
    return fastvlm.load("mini")[1].tokenizer


@pytest.fixture(scope="module")
def limits(tokenizer):
    tokens = from_tokenizer(tokenizer)
    return {size: TextLimits(tokens, tokenizer, size) for size in (1, 3, 20)}


def is_refused(limits, *texts):
    try:
        limits.check_length(texts, "prompt")
    except ApiError as error:
        return error.code == "context_length_exceeded" and error.param == "prompt"
    return False


PIECES = st.sampled_from(
    [
        " approximately",
        " ",
        "\n",
        "a",
        "0",
        "----",
        "=",
        "<|im_start|>",
        "é",
        "e\u0301",
        "\u212a",
        "\u1100\u1161\u11a8",
        "好",
    ]
)


@given(st.lists(PIECES, max_size=40), st.sampled_from([1, 3, 20]), st.integers(1, 60))
def test_what_is_refused_is_too_long(limits, tokenizer, pieces, size, times):
    text = "".join(pieces) * times
    if is_refused(limits[size], text):
        assert len(tokenizer(text)["input_ids"]) > size


@pytest.mark.parametrize("letter", ["a", " ", "-", "é", "e\u0301", "好", "\N{KELVIN SIGN}", " a"])
def test_a_megabyte_is_refused_whatever_it_is_of(limits, letter):
    assert is_refused(limits[20], letter * (2**20 // len(letter)))
    assert is_refused(limits[20], *[letter] * 2**15)


def test_a_text_that_fits_is_never_refused(limits, tokenizer):
    text = " approximately philosophical" * 10
    assert len(tokenizer(text)["input_ids"]) <= 20
    for form in ("NFC", "NFD"):
        assert not is_refused(limits[20], unicodedata.normalize(form, text))


def test_special_tokens_that_were_added_are_known():
    words = parrot.tokenizer()
    words.add_tokens(["<|ours|>"], special_tokens=True)
    limits = TextLimits(from_tokenizer(words), words, 10)
    limits.check_special_tokens("an ordinary < text |>", "prompt")
    for mark in ("<|ours|>", "<|im_end|>", "<image>", "<|endoftext|>"):
        with pytest.raises(ApiError, match="is a special token of the model"):
            limits.check_special_tokens(f"a{mark}", "prompt")
