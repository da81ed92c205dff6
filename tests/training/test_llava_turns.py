"""Where images stand in LLaVA's texts, against what the chat template makes of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_files import processor

from fastvlm.errors import DataError
from fastvlm.training.data.llava_turns import is_llava_turn, llava_message, split_at_images, without_blank_start

PROCESSOR = processor()
PIECES = st.lists(st.sampled_from(["<image>", " ", "\n", "\t", "a", "b c", "é"]), min_size=1, max_size=8).map("".join)


def rendered(items):
    text = PROCESSOR.apply_chat_template([{"role": "user", "content": items}])
    return text.split("<|im_start|>user\n")[1].removesuffix("<|im_end|>\n")


def images_first(text):
    """`text` with its images at its front, without white space there, if all of them stand at its end."""
    begin, mark, rest = text.partition("<image>")
    moves = mark and not rest.replace("<image>", "").strip()
    return "<image>" * text.count("<image>") + begin.lstrip() if moves else text


@given(text=PIECES)
def test_only_white_space_beside_an_image_changes(text):
    found = rendered(split_at_images(text))
    if "<image>" not in text:
        assert found == text
        return
    assert found.count("<image>") == text.count("<image>")
    assert re.sub(r"\s*(<image>)\s*", r"\1", found) == images_first(re.sub(r"\s*(<image>)\s*", r"\1", text))
    beside = re.findall(r"(\s*)<image>(\s*)", found)
    assert {space for pair in beside for space in pair} <= {"", "\n"}


@given(text=PIECES.filter(lambda text: "<image>" in text))
def test_a_text_that_stands_as_the_template_has_it_stays_as_it_is(text):
    once = rendered(split_at_images(text))
    assert rendered(split_at_images(once)) == once


@given(text=st.text(" \n\r\tab", max_size=8))
def test_a_reply_loses_blank_lines_and_nothing_else(text):
    kept = without_blank_start(text)
    assert text.endswith(kept) and not text[: len(text) - len(kept)].strip()
    assert not re.match(r"[ \t]*[\r\n]", kept)
    assert without_blank_start(kept) == kept


@pytest.mark.parametrize(
    ("turn", "is_one"),
    [
        ({"from": "human", "value": ""}, True),
        ({"from": None, "value": None, "role": "user", "content": "Hi"}, False),
        ({"from": "human"}, False),
        ("human", False),
    ],
)
def test_a_turn_is_known_by_its_keys(turn, is_one):
    assert is_llava_turn(turn) is is_one


def test_only_a_user_shows_images():
    """A placeholder that another one writes is left in the text, which the processor refuses."""
    message = llava_message({"from": "gpt", "value": "<image>\nA."}, 1)
    assert message == {"role": "assistant", "content": [{"type": "text", "text": "<image>\nA."}]}
    with pytest.raises(DataError, match="turn 2 has the value 3"):
        llava_message({"from": "human", "value": 3}, 2)
