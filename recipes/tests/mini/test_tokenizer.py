"""The tokenizer: Qwen2's rules, letter by letter where a word opens a line, and the conversation format."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS
from fastvlm_recipes.mini.tokenizer import SPACE, SPECIAL_TOKENS, build_merges, build_tokenizer, byte_symbols

WORDS = ["are", "a", "helpful", "color", "circle", "the", "is", "does", "it", "say", "zip"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    letters = [f"{first}{second}" for first in "abcdefgh" for second in "ijklmnop"]
    return build_tokenizer(build_merges([*WORDS, *letters], 170))


def test_the_special_tokens_follow_the_base_vocabulary(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [426, 427, 428, 429]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert len(byte_symbols()) == 256


@given(text=st.text(max_size=60))
def test_round_trip(tokenizer: Any, text: str) -> None:
    import unicodedata

    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_template_words_cost_one_token_and_opening_words_are_spelled(tokenizer: Any) -> None:
    assert tokenizer.tokenize("What color is the circle?") == ["What", "Ġcolor", "Ġis", "Ġthe", "Ġcircle", "?"]
    assert tokenizer.tokenize("circle") == list("circle")
    assert tokenizer.tokenize("GAZ\ncircle") == [*"GAZ", "Ċ", *"circle"]


def test_no_held_out_word_has_a_token(tokenizer: Any) -> None:
    assert not {SPACE + word for word in HELD_OUT_WORDS} & set(tokenizer.get_vocab())


def test_too_few_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="give a larger corpus"):
        build_merges(["one"], 3000)
