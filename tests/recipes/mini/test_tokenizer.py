"""The tokenizer: Qwen2's rules, letter by letter where a word opens a line, and the conversation format."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes.mini.conversation import IGNORED, SYSTEM, VISUAL_TOKENS, Conversations
from recipes.mini.tokenizer import SPACE, SPECIAL_TOKENS, build_merges, build_tokenizer, byte_symbols

from fastvlm.demo_data.word_lists import HELD_OUT_WORDS

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


def test_a_conversation_is_what_the_whole_text_tokenises_to(tokenizer: Any) -> None:
    talks = Conversations(tokenizer)
    turns = [("What color is it?", "red"), ("What does it say?", "CAT\ndog")]
    encoded = talks.encode(turns, 500)
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{'<image>' * VISUAL_TOKENS}\nWhat color is it?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nWhat does it say?<|im_end|>\n"
        "<|im_start|>assistant\nCAT\ndog<|im_end|>\n"
    )
    assert encoded.ids == tokenizer(text)["input_ids"]
    learnt = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    assert learnt == "red<|im_end|>\nCAT\ndog<|im_end|>\n"
    prompt = talks.prompt("What color is it?")
    assert encoded.ids[: len(prompt)] == prompt


def test_turns_that_do_not_fit_are_left_out(tokenizer: Any) -> None:
    talks = Conversations(tokenizer)
    one = talks.encode([("What is it?", "red")], 0)
    assert (
        talks.encode([("What is it?", "red"), ("What is it?", "x" * 50), ("Is it a?", "No")], len(one.ids) + 30).ids[
            : len(one.ids)
        ]
        == one.ids
    )
    assert len(talks.encode([("What is it?", "red")] * 9, len(one.ids) + 20).ids) <= len(one.ids) + 20
