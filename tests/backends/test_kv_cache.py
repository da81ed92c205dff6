"""Keys and values in slots: sizes as told, prefixes copied, memory taken as it is used."""

import mmap
from pathlib import Path

import pytest
import tiny
import torch

from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.hf.checkpoint import plain_config
from fastvlm.hf.config import FastVlmConfig


def cache(num_slots=3, context=8, dtype=torch.float32):
    return KeyValueCache(plain_config(tiny.config()).text_config, num_slots, context, dtype)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("0.5b", 24 * 2 * 2 * 64 * 2), ("1.5b", 28 * 2 * 2 * 128 * 2), ("7b", 28 * 2 * 4 * 128 * 2)],
)
def test_bytes_per_token_of_the_published_sizes(preset, expected):
    assert plain_config(FastVlmConfig.preset(preset)).text_config.kv_bytes_per_token(2) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_told_is_what_is_there(dtype):
    made = cache(dtype=dtype)
    tensors = made.layers
    assert len(tensors) == 2 and all(tensor.shape == (3, 2 * 2, 8, 8) for tensor in tensors)
    assert made.num_bytes == sum(tensor.nbytes for tensor in tensors) == made.bytes_per_token * 3 * 8
    assert all(tensor.dtype == dtype and not tensor.any() for tensor in tensors)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)


def test_a_prefix_is_copied_and_nothing_else():
    made = cache()
    for layer, tensor in enumerate(made.layers):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + 10_000 * layer)
    before = [tensor.clone() for tensor in made.layers]
    made.copy_prefix(0, 2, 5)
    for tensor, old in zip(made.layers, before, strict=True):
        assert torch.equal(tensor[2, :, :5], old[0, :, :5])
        assert torch.equal(tensor[2, :, 5:], old[2, :, 5:])
        assert torch.equal(tensor[:2], old[:2])


def test_a_slot_copied_onto_itself_stays():
    made = cache()
    made.layers[0].fill_(3.0)
    made.copy_prefix(1, 1, 8)
    assert (made.layers[0] == 3.0).all()


def test_slots_are_views():
    made = cache()
    made.slots[2][1].fill_(5.0)
    assert (made.layers[1][2] == 5.0).all() and not made.layers[1][:2].any() and not made.layers[0].any()


def test_a_claimed_context_is_no_used_memory():
    """16 GiB may not fit; untouched, they are only addresses."""
    made = cache(num_slots=2, context=2**25)
    assert made.num_bytes == 2**34
    made.layers[0][1, :, 2**25 - 1] = 1.0
    assert made.layers[0][1, :, 2**25 - 2 :].sum() == 4 * 8


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells how much memory is used")
def test_a_slot_of_a_long_context_takes_what_its_tokens_need():
    """Large pages, which NumPy asks for, would take 2 MiB for each layer's every head."""
    made = KeyValueCache(plain_config(FastVlmConfig.preset("0.5b")).text_config, 2, 131_072, torch.bfloat16)
    before = resident_bytes()
    for layer in made.layers:
        layer[1, :, :300] = 1.0
    used = resident_bytes() - before
    assert 300 * made.bytes_per_token <= used + 2**20 < 4 * 300 * made.bytes_per_token
