"""A prompt made ready: what the caches know it by, and where it may be cut."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.engine.pixel_cache import PixelCache
from fastvlm.engine.prompt_inputs import prepare
from fastvlm.errors import UsageError

CONFIG, NO_CACHE = tiny.config(), PixelCache(0)


def prepared(layout, images=None):
    count = layout.count("i")
    inputs = {"input_ids": torch.tensor([tiny.prompt(layout)])}
    if count:
        inputs["pixel_values"] = tiny.images(count) if images is None else images
    return prepare(inputs, None, CONFIG, NO_CACHE)


def test_keys_are_ids_with_digests_for_images():
    prompt = prepared("titi")
    first, second = prompt.digests
    ids = prompt.token_ids
    assert prompt.keys == [ids[0], *[first] * 4, ids[5], *[second] * 4]
    assert first != second


def test_text_alone():
    prompt = prepared("ttt")
    assert prompt.keys == list(prompt.token_ids) and prompt.pixel_values is None
    assert prompt.cut(2) == (2, 0)


@given(st.text("ti", min_size=1, max_size=6), st.data())
def test_a_cut_never_goes_through_an_image(layout, data):
    prompt = prepared(layout)
    start = data.draw(st.integers(0, len(prompt.token_ids) - 1))
    begin, first = prompt.cut(start)
    assert begin <= start < begin + 4
    left = sum(token == tiny.IMAGE_ID for token in prompt.token_ids[begin:])
    assert left == 4 * (len(prompt.digests) - first)
    assert begin == start or prompt.token_ids[start] == tiny.IMAGE_ID, "cut back although no image was in the way"


def test_a_prepared_prompt_is_taken_as_it_is():
    prompt = prepared("ti")
    assert prepare(prompt, None, CONFIG, NO_CACHE) is prompt
    assert prompt.preprocess_ms > 0


def test_ids_may_be_a_plain_list():
    assert prepare({"input_ids": [5, 6]}, None, CONFIG, NO_CACHE).token_ids == (5, 6)


def test_the_mask_leaves_padding_out():
    inputs = {"input_ids": [[0, 0, 5, 6]], "attention_mask": [[0, 0, 1, 1]]}
    assert prepare(inputs, None, CONFIG, NO_CACHE).token_ids == (5, 6)


def test_a_batch_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"shape \(2, 1\)"):
        prepare({"input_ids": [[5], [6]]}, None, CONFIG, NO_CACHE)
