"""Images are known by their content, and the oldest leave first."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.engine.encoder_cache import EncoderCache, image_digest
from fastvlm.errors import UsageError

EMBEDS_BYTES = 4 * 8 * 4  # four visual tokens, eight wide, float32


def embeds(value):
    return torch.full((4, 8), float(value))


def test_equal_images_are_the_same_and_others_are_not():
    first, second = tiny.images(2)
    assert image_digest(first) == image_digest(first.clone())
    changed = first.clone()
    changed[2, -1, -1] += 1e-3
    shifted = torch.zeros(3, 2, 8)
    digests = [image_digest(p) for p in (first, second, changed, first.double(), first.bfloat16(), first.flip(-1))]
    digests += [image_digest(shifted), image_digest(shifted.view(3, 4, 4)), image_digest(shifted.int())]
    assert len(set(digests)) == len(digests)


def test_how_an_image_lies_in_memory_does_not_matter():
    batch = tiny.images(2)
    expected = image_digest(batch[1].clone())
    assert image_digest(batch[1]) == expected
    assert image_digest(batch.contiguous(memory_format=torch.channels_last)[1]) == expected


def test_what_was_put_is_there_until_others_push_it_out():
    cache = EncoderCache(max_bytes=2 * EMBEDS_BYTES)
    cache.put("a", embeds(1))
    cache.put("b", embeds(2))
    assert torch.equal(cache.get("a"), embeds(1)), "used again, so it is not the oldest"
    cache.put("c", embeds(3))
    assert cache.get("b") is None
    assert torch.equal(cache.get("a"), embeds(1)) and torch.equal(cache.get("c"), embeds(3))
    cache.clear()
    assert (len(cache), cache.num_bytes, cache.get("a")) == (0, 0, None)


def test_one_too_large_for_the_limit_is_not_kept_and_pushes_nothing_out():
    cache = EncoderCache(max_bytes=EMBEDS_BYTES)
    cache.put("a", embeds(1))
    cache.put("large", torch.zeros(5, 8))
    assert cache.get("large") is None and cache.get("a") is not None
    assert EncoderCache(0).get("a") is None


def test_a_row_of_a_batch_does_not_keep_the_batch():
    cache = EncoderCache(max_bytes=10_000)
    cache.put("a", torch.zeros(50, 4, 8)[7])
    assert cache.get("a").untyped_storage().nbytes() == EMBEDS_BYTES


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 6)), max_size=30))
def test_the_bound_holds_and_the_count_is_right(puts):
    cache = EncoderCache(max_bytes=12 * 32)
    for digest, num_tokens in puts:
        cache.put(digest, torch.zeros(num_tokens, 8))
        kept = [cache._embeds[name] for name in cache._embeds]
        assert cache.num_bytes == sum(tensor.nbytes for tensor in kept) <= cache.max_bytes
        assert cache.get(digest) is not None, "the newest was dropped"


def test_a_negative_limit_is_refused():
    with pytest.raises(UsageError, match="expected 0 or more"):
        EncoderCache(-1)
