"""4-bit linears: layout, rounding, both kernels, and what stands in for them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from linears import NO_KERNELS, layer, relative_gap

from fastvlm.backends.cpu import int4
from fastvlm.backends.cpu.int4 import Int4Linear, int4_linear
from fastvlm.backends.cpu.int8 import Int8DynamicLinear, Int8WeightOnlyLinear
from fastvlm.backends.linear import PlainLinear
from fastvlm.formats.rounding import GROUP_SIZES, pack_int4, quantize_int4

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 4).map(lambda n: 128 * n), st.integers(1, 200))
needs_kernel = pytest.mark.skipif(not int4.cpu_kernels().int4_block, reason="no int4 kernel on this CPU")


@needs_kernel
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (128, 96), (192, 64)])
def test_the_layout_is_that_of_torchs_kernel(outputs, inputs):
    values = torch.randint(0, 16, (outputs, inputs))
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.int(), 1)
    assert torch.equal(pack_int4(values.to(torch.uint8), int4.cpu_kernels().int4_block), theirs)


@pytest.mark.parametrize("outputs", [1, 64, 70, 200])
def test_laying_a_weight_out_for_another_cpu_changes_no_value(outputs):
    stored = quantize_int4(layer(1, 128, outputs)[1], 64)
    other = stored.in_blocks(32)
    assert stored.in_blocks(64) is stored and not torch.equal(other.packed, stored.packed)
    assert torch.equal(other.dequantize(), stored.dequantize())
    assert torch.equal(other.in_blocks(64).packed, stored.packed)


@given(shape=SHAPES, group_size=st.sampled_from(GROUP_SIZES), offset=st.floats(-3, 3))
def test_a_weight_is_at_most_half_a_step_off(shape, group_size, offset):
    _, inputs, outputs = shape
    weight = torch.randn(outputs, inputs) + offset
    rounded = quantize_int4(weight, group_size)
    assert (rounded.group_size, rounded.in_features, rounded.out_features) == (group_size, inputs, outputs)
    scales, zeros = rounded.scales_and_zeros[:, :outputs].float().unbind(-1)
    # Half a step; then scale (over 8 steps) and zero rounded to bfloat16, and the weight itself, 2 ** -9 each.
    bound = 0.5 * scales + (8 * scales + zeros.abs()) * 2**-8 + weight.abs().max() * 2**-8
    error = (rounded.dequantize().float() - weight).abs().reshape(outputs, -1, group_size).amax(-1).T
    assert (error <= bound).all()


def test_what_has_16_values_is_kept():
    values = torch.arange(16.0).repeat(64, 4)
    assert torch.equal(quantize_int4(values, 32).dequantize().float(), values)


def test_constant_groups_are_kept():
    for constant in (0.0, 1.0, -2.5):
        assert torch.equal(
            quantize_int4(torch.full((3, 64), constant)).dequantize().float(), torch.full((3, 64), constant)
        )


@given(shape=SHAPES, group_size=st.sampled_from(GROUP_SIZES), has_bias=st.booleans())
def test_equals_the_product_with_the_rounded_weight(shape, group_size, has_bias):
    x, weight, bias = layer(*shape)
    bias = bias if has_bias else None
    for dtype in (torch.float32, torch.bfloat16):
        result = int4_linear(weight, bias, group_size)(x.to(dtype))
        expected = F.linear(x.to(torch.bfloat16).float(), quantize_int4(weight, group_size).dequantize().float(), bias)
        assert result.dtype == dtype and result.shape == expected.shape
        assert relative_gap(result, expected) < 0.02  # bfloat16, and there may be two outputs alone


@needs_kernel
def test_few_and_many_rows_agree(monkeypatch):
    x, weight, bias = layer(7, 128, 3000)
    made = int4_linear(weight, bias)
    few = made(x)
    monkeypatch.setattr(int4, "MANY_ROWS", 1)
    assert relative_gap(made(x), few) < 0.005
    monkeypatch.setattr(int4, "CHUNK_BYTES", 256)
    assert relative_gap(made(x), few) < 0.005


def test_a_batch_beyond_the_limit_takes_the_way_of_many_rows():
    x, weight, bias = layer(int4.MANY_ROWS + 1, 64, 70)
    made = int4_linear(weight, bias)
    assert relative_gap(made(x), F.linear(x, made.dense().float(), bias)) < 0.01


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (64,), (2, 3, 64)])
def test_any_number_of_leading_dimensions(shape):
    _, weight, bias = layer(1, 64, 10)
    x = torch.randn(shape)
    made = int4_linear(weight, bias)
    assert made(x).shape == (*shape[:-1], 10)
    assert not x.numel() or relative_gap(made(x), F.linear(x, made.dense().float(), bias)) < 0.01


@needs_kernel
def test_memory_is_half_a_byte_a_weight_and_the_scales():
    _, weight, _ = layer(1, 896, 1152)
    assert int4_linear(weight, None, 32).num_bytes == 1152 * 896 * (1 / 2 + 4 / 32)
    assert int4_linear(weight, None, 128).num_bytes == 1152 * 896 * (1 / 2 + 4 / 128)


def test_inputs_that_fill_no_group_get_8_bits():
    made = int4_linear(torch.randn(8, 96), None, 64)
    assert isinstance(made, (Int8DynamicLinear, Int8WeightOnlyLinear))


def test_without_the_kernel_the_numbers_are_the_same(monkeypatch):
    x, weight, bias = layer(3, 64, 24)
    here = int4_linear(weight, bias)(x)
    monkeypatch.setattr(int4, "cpu_kernels", lambda: NO_KERNELS)
    made = int4_linear(weight, bias)
    assert isinstance(made, PlainLinear) and not isinstance(made, Int4Linear)
    assert relative_gap(made(x), here) < 0.01
