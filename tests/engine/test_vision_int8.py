"""The encoder with 8-bit FFNs against the plain one."""

import copy

import pytest
import tiny
import torch
from linears import NO_KERNELS, relative_gap

from fastvlm import FastViTHD
from fastvlm.engine import vision_int8
from fastvlm.engine.linear import packed_linear
from fastvlm.engine.vision import FastEncoder, Ffn
from fastvlm.engine.vision_int8 import quantize_encoder

pytestmark = pytest.mark.skipif(not vision_int8.cpu_kernels().has_packed_int8, reason="this CPU multiplies no 8 bits")


@pytest.fixture(scope="module")
def plain():
    encoder = tiny.loud(FastViTHD(tiny.vision_config(layers=[1, 2, 2, 1, 1]))).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):  # as loud as what they are added to
            parameter.data.fill_(1.0)
    return encoder


@pytest.fixture(scope="module")
def fast(plain):
    return FastEncoder(plain, torch.bfloat16)


@torch.no_grad()
def gap(encoder, plain, images):
    return relative_gap(encoder(images), plain(images))


def without_ffns(fast):
    """What is left if no FFN adds anything: how far a quantized one could be off."""
    bare = copy.copy(fast)
    bare.steps = [step for step in fast.steps if not isinstance(step, Ffn)]
    return bare


@pytest.mark.parametrize("size", [(3, 128, 128), (2, 64, 200), (1, 33, 70)])
def test_features_are_within_three_hundredths(plain, fast, size):
    quantized = quantize_encoder(fast, tiny.images(4, seed=5))
    images = tiny.images(*size)
    assert gap(without_ffns(fast), plain, images) > 0.1, "the FFNs must matter"
    assert gap(quantized, plain, images) < 0.03


def test_float32_maps_between_8_bit_ffns(plain):
    quantized = quantize_encoder(FastEncoder(plain), tiny.images(4, seed=5))
    assert quantized(tiny.images(1)).dtype == torch.float32
    assert 1e-4 < gap(quantized, plain, tiny.images(3)) < 0.05


def test_the_given_encoder_stays_as_it_is(fast):
    before, steps = fast(tiny.images(1)), list(fast.steps)
    quantized = quantize_encoder(fast, tiny.images(2))
    assert fast.steps == steps
    assert torch.equal(fast(tiny.images(1)), before)
    assert not torch.equal(quantized(tiny.images(1)), before)
    assert not [step for step in quantized.steps if isinstance(step, Ffn)]


def test_batch_equals_each_image_alone(fast):
    quantized, images = quantize_encoder(fast, tiny.images(2)), tiny.images(3)
    alone = torch.cat([quantized(image[None]) for image in images])
    assert relative_gap(quantized(images), alone) < 1e-2


def test_channels_of_very_different_range_are_balanced(fast):
    """One channel a thousand times the others would leave these a few steps of 255."""
    ffn = copy.copy(next(step for step in fast.steps if isinstance(step, Ffn)))
    ffn.conv = copy.copy(ffn.conv)
    factors = torch.ones(ffn.widen.dense().shape[1])
    factors[1] = 1024.0
    ffn.conv.kernels = [(w * factors[:, None, None, None].to(w), b * factors.to(b)) for w, b in ffn.conv.kernels]
    weight = ffn.widen.dense()
    ffn.widen = packed_linear(weight / factors.to(weight), ffn.widen.bias, "gelu")
    x = torch.randn(1, 16, 16, len(factors)).bfloat16()
    quantized = vision_int8._Int8Ffn(ffn, vision_int8._ranges(ffn, x))
    added, expected = quantized(x.clone()).float() - x.float(), ffn(x.clone()).float() - x.float()
    assert relative_gap(added, expected) < 0.05


def test_what_is_larger_than_anything_measured_is_cut_off(plain, fast):
    quantized = quantize_encoder(fast, 0.05 * tiny.images(2))
    features = quantized(tiny.images(2))
    assert features.isfinite().all()
    assert gap(quantized, plain, tiny.images(2)) < 1.0


def test_nothing_measured_but_zeros(fast):
    ffn = next(step for step in fast.steps if isinstance(step, Ffn))
    zeros = torch.zeros(1, 4, 4, ffn.widen.dense().shape[1], dtype=torch.bfloat16)
    made = vision_int8._Int8Ffn(ffn, vision_int8._ranges(ffn, zeros))
    assert made(zeros.clone()).isfinite().all()


def test_ranges_grow_with_images(fast):
    images = tiny.images(4)
    few = vision_int8._measure(fast, images[:1])
    more = vision_int8._measure(fast, images)
    assert few.keys() == more.keys() and len(few) == 7
    for index in few:
        assert (few[index].inputs <= more[index].inputs).all()
        assert few[index].hidden_high <= more[index].hidden_high
        assert more[index].hidden_low <= few[index].hidden_low <= 0


def test_without_8_bit_kernels_the_encoder_is_returned(fast, monkeypatch):
    monkeypatch.setattr(vision_int8, "cpu_kernels", lambda: NO_KERNELS)
    assert quantize_encoder(fast, tiny.images(1)) is fast
