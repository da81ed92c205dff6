"""Images are encoded once, alone or together, and what is dropped halfway is not known afterwards."""

import pytest
import tiny
import torch

from fastvlm.engine.encoder_cache import EncoderCache, encode_images
from fastvlm.engine.prompt_inputs import PromptInputs


def means(pixels):
    """(I, 3, H, W) -> (I, 1, 3): enough of an encoder to tell images apart."""
    return pixels.mean((2, 3))[:, None]


class Whole:
    """The part of a backend that encodes, all images at once."""

    encodes_singly, num_pauses = False, 0

    def __init__(self):
        self.calls = []

    def encode(self, pixel_values):
        for _ in range(self.num_pauses):
            yield
        self.calls.append(len(pixel_values))
        return means(pixel_values)


class Sliced(Whole):
    """One by one, in steps."""

    encodes_singly, num_pauses = True, 3


def prompt(names):
    """A prompt with an image for each letter of `names`; equal letters are equal images."""
    pixels = [tiny.images(1, 8, 8, seed=ord(name))[0] for name in names]
    return PromptInputs((1,), torch.stack(pixels) if pixels else None, tuple(names))


def result(work):
    """What `work` returns, and how often it could have been left alone."""
    pauses = 0
    try:
        while True:
            next(work)
            pauses += 1
    except StopIteration as end:
        return end.value, pauses


@pytest.mark.parametrize("encode_class", [Whole, Sliced])
def test_each_image_is_encoded_once_and_they_come_in_their_order(encode_class):
    encode, cache = encode_class(), EncoderCache(2**20)
    for names, first in (("ab", 0), ("bacb", 0), ("cab", 1), ("abd", 2)):
        embeds, _ = result(encode_images(prompt(names), first, encode, cache))
        assert torch.equal(embeds, means(prompt(names).pixel_values[first:]))
    assert sum(encode.calls) == 4


def test_together_if_it_is_whole_and_one_by_one_in_slices():
    whole, sliced = Whole(), Sliced()
    assert result(encode_images(prompt("abc"), 0, whole, EncoderCache(2**20)))[1] == 1
    assert result(encode_images(prompt("abc"), 0, sliced, EncoderCache(2**20)))[1] == 3 * (3 + 1)
    assert (whole.calls, sliced.calls) == ([3], [1, 1, 1])


@pytest.mark.parametrize("encode", [Whole(), Sliced()])
def test_without_new_images_nothing_is_called(encode):
    cache = EncoderCache(2**20)
    assert result(encode_images(prompt(""), 0, encode, cache)) == (None, 0)
    assert result(encode_images(prompt("ab"), 2, encode, cache)) == (None, 0)
    cache.put("a", torch.ones(1, 3))
    embeds, pauses = result(encode_images(prompt("a"), 0, encode, cache))
    assert embeds.tolist() == [[[1, 1, 1]]] and pauses == 0 and not encode.calls


@pytest.mark.parametrize(("pauses", "known"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_what_is_dropped_halfway_is_not_known(pauses, known):
    cache = EncoderCache(2**20)
    work = encode_images(prompt("ab"), 0, Sliced(), cache)
    for _ in range(pauses):
        next(work)
    work.close()
    assert len(cache) == known
    embeds, _ = result(encode_images(prompt("ab"), 0, Sliced(), cache))
    assert torch.equal(embeds, means(prompt("ab").pixel_values))


def test_without_memory_for_images():
    embeds, _ = result(encode_images(prompt("aba"), 0, Sliced(), EncoderCache(0)))
    assert torch.equal(embeds, means(prompt("aba").pixel_values))
