"""Where the assistant speaks, as `apply_chat_template` tells it."""

import pytest
import torch
from training_files import gray, processor

from fastvlm.errors import PromptError

PROCESSOR = processor()
TALK = [
    {"role": "user", "content": [{"type": "image", "image": gray(3)}, {"type": "text", "text": "assistant\nWhat?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def masked(conversation, return_tensors, **options):
    return PROCESSOR.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors=return_tensors,
        **options,
    )


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_the_mask_is_on_replies_and_their_ends(return_tensors):
    inputs = masked([TALK, TALK[:2]], return_tensors, padding=True)
    for ids, mask, said in zip(
        inputs["input_ids"],
        inputs["assistant_masks"],
        ["A cat.<|im_end|>Yes.<|im_end|>", "A cat.<|im_end|>"],
        strict=True,
    ):
        told = [int(token) for token, is_said in zip(ids, mask, strict=True) if is_said]
        assert PROCESSOR.tokenizer.decode(told) == said
    assert return_tensors is None or inputs["assistant_masks"].shape == inputs["input_ids"].shape
    assert return_tensors != "pt" or inputs["assistant_masks"].dtype == torch.int64


def test_a_reply_that_is_cut_off_is_not_in_the_mask():
    inputs = masked([TALK], "pt", truncation=True, max_length=len(masked([TALK], None)["input_ids"][0]) - 3)
    assert PROCESSOR.tokenizer.decode(inputs["input_ids"][inputs["assistant_masks"] == 1]) == "A cat.<|im_end|>"


@pytest.mark.parametrize("options", [{"tokenize": True}, {"return_dict": True}, {}])
def test_a_mask_without_ids_is_refused(options):
    with pytest.raises(PromptError, match="needs tokenize=True and return_dict=True"):
        PROCESSOR.apply_chat_template(TALK, return_assistant_tokens_mask=True, **options)
