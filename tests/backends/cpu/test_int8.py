"""8-bit linears against explicit products of the rounded weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from linears import NO_KERNELS, layer, relative_gap

from fastvlm.backends.cpu import int8
from fastvlm.backends.cpu.int8 import (
    Int8DynamicLinear,
    Int8WeightOnlyLinear,
    int8_linear,
    int8_weight_only_linear,
    quantize_int8,
    quantize_rows,
)
from fastvlm.backends.linear import PlainLinear

MAKERS = [int8_linear, int8_weight_only_linear]
needs_kernel = pytest.mark.skipif(not int8.cpu_kernels().has_packed_int8, reason="this CPU multiplies no 8 bits")
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 130), st.integers(1, 130))


@given(shape=SHAPES, seed=st.integers(0, 9))
def test_a_weight_is_at_most_half_a_step_off(shape, seed):
    _, weight, _ = layer(*shape, seed=seed)
    rounded = quantize_int8(weight)
    assert rounded.values.dtype == torch.int8 and rounded.values.abs().max() == 127
    error = (rounded.dequantize() - weight).abs()
    assert (error <= rounded.scales[:, None] * 0.5001).all()


def test_rows_of_zeros_stay_zero():
    weight = torch.zeros(3, 16)
    weight[1] = 1e-30
    assert quantize_int8(weight).dequantize()[[0, 2]].abs().max() == 0
    for make in MAKERS:
        x = torch.zeros(2, 16)
        bias = torch.tensor([1.0, 2.0, 3.0])
        assert torch.equal(make(torch.randn(3, 16), bias)(x), bias.expand(2, 3))


def restored(x, num_terms=2):
    """`x` as its terms have it, float64."""
    terms, scales = quantize_rows(x, num_terms)
    assert terms.dtype == torch.uint8 and scales.dtype == torch.float32
    first, *second = (terms.double() - 128).chunk(num_terms)
    return (first + second[0] / 254 if second else first) * scales


@given(shape=SHAPES, dtype=st.sampled_from([torch.float32, torch.bfloat16]), num_terms=st.sampled_from([1, 2]))
def test_activations_are_at_most_half_a_step_of_the_last_term_off(shape, dtype, num_terms):
    x = layer(*shape)[0].to(dtype)
    step = x.double().abs().amax(-1, keepdim=True) / 127 / 254 ** (num_terms - 1)
    assert ((restored(x, num_terms) - x.double()).abs() <= 0.51 * step).all()


@needs_kernel
@pytest.mark.parametrize("num_terms", [1, 2])
def test_one_bfloat16_row_is_rounded_as_finely_as_many(num_terms):
    """A sum in bfloat16 would lose the second term, and half of the first."""
    x, weight, _ = layer(16, 896, 1152)
    x, rounded = x.bfloat16(), quantize_int8(weight)
    made = Int8DynamicLinear(rounded, None, num_terms)
    alone = torch.cat([made(row[None]) for row in x])
    exact = F.linear(restored(x, num_terms), rounded.dequantize().double())
    assert relative_gap(alone, exact) < 2**-8


@needs_kernel
@given(shape=SHAPES, has_bias=st.booleans(), num_terms=st.sampled_from([1, 2]))
def test_dynamic_equals_the_product_of_what_was_rounded(shape, has_bias, num_terms):
    x, weight, bias = layer(*shape)
    bias = bias if has_bias else None
    rounded = quantize_int8(weight)
    bias64 = None if bias is None else bias.double()
    expected = F.linear(restored(x, num_terms), rounded.dequantize().double(), bias64)
    assert relative_gap(Int8DynamicLinear(rounded, bias, num_terms)(x), expected) < 1e-4


@given(shape=SHAPES, has_bias=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_results_are_near_those_of_the_rounded_weight(shape, has_bias, dtype):
    x, weight, bias = layer(*shape)
    x, bias = x.to(dtype), bias if has_bias else None
    exact = F.linear(x.double(), quantize_int8(weight).dequantize().double(), None if bias is None else bias.double())
    largest = x.float().norm(dim=-1, keepdim=True) * weight.norm(dim=-1) + bias.abs().max() if has_bias else None
    for make, bound in ((int8_linear, 0.03), (int8_weight_only_linear, 0.01)):
        result = make(weight, bias)(x)
        assert result.dtype == dtype and result.shape == exact.shape
        scale = exact.abs() + x.float().norm(dim=-1, keepdim=True) * weight.norm(dim=-1) if largest is None else largest
        assert ((result.double() - exact).abs() <= bound * scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs", "bound"), [(896, 1152, 0.01), (4864, 896, 0.02), (896, 4864, 0.02)])
def test_at_the_decoders_sizes(inputs, outputs, bound, dtype):
    x, weight, bias = layer(9, inputs, outputs)
    exact = F.linear(x, weight, bias)
    assert relative_gap(int8_linear(weight, bias)(x.to(dtype)), exact) < bound
    assert relative_gap(int8_weight_only_linear(weight, bias)(x.to(dtype)), exact) < 0.01


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24), (24,), (2, 3, 24), (1, 1, 24)])
def test_any_number_of_leading_dimensions(make, shape):
    _, weight, bias = layer(1, 24, 10)
    x = torch.randn(shape)
    result = make(weight, bias)(x)
    assert result.shape == (*shape[:-1], 10)
    assert not x.numel() or relative_gap(result, F.linear(x, weight, bias)) < 0.03


@pytest.mark.parametrize("make", MAKERS)
def test_a_row_does_not_depend_on_its_neighbors(make):
    x, weight, bias = layer(5, 64, 48)
    x[1] *= 1e4  # such as the first token's in Qwen2
    made = make(weight, bias)
    together = made(x)
    for row, result in zip(x, together, strict=True):
        torch.testing.assert_close(made(row[None])[0], result, rtol=1e-5, atol=1e-5 * result.abs().max().item())
    assert relative_gap(together[0], F.linear(x[0], weight, bias)) < 0.03


def test_in_attention_an_outlier_does_not_drown_its_row():
    x, weight, bias = layer(2, 896, 1152)
    x[:, 7] = 300.0
    weight[:, 7] = 0.0
    weight = quantize_int8(weight).dequantize()
    for rows in (x, x[:1]):
        assert relative_gap(int8_linear(weight, bias)(rows), F.linear(rows, weight, bias)) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [64, 70])
def test_few_and_many_rows_of_the_weight_only_kernel_agree(monkeypatch, dtype, inputs):
    x, weight, bias = layer(7, inputs, 3000, dtype)
    made = int8_weight_only_linear(weight, bias)
    few = made(x)
    monkeypatch.setattr(int8, "MANY_ROWS", 1)
    many = made(x)
    assert many.dtype == dtype and relative_gap(many, few) < 0.01
    monkeypatch.setattr(int8, "CHUNK_BYTES", 256)
    torch.testing.assert_close(made(x), many, rtol=1e-2, atol=1e-2)


def test_where_bfloat16_is_emulated_many_rows_are_multiplied_in_float32(monkeypatch):
    monkeypatch.setattr(int8, "cpu_kernels", lambda: NO_KERNELS)
    x, weight, bias = layer(int8.MANY_ROWS + 5, 64, 48)
    expected = F.linear(x, quantize_int8(weight).dequantize(), bias)
    assert relative_gap(int8_weight_only_linear(weight, bias)(x), expected) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows_it_and_spoils_no_other(bad):
    x, weight, bias = layer(3, 64, 48)
    x[1, 5] = bad
    made = int8_linear(weight, bias)
    assert not made(x)[1].isfinite().any()
    assert not made(x[1:2]).isfinite().any()
    assert made(x)[[0, 2]].isfinite().all()


def test_memory_is_a_byte_a_weight_and_the_scales():
    _, weight, _ = layer(1, 896, 1152)
    for make in MAKERS:
        assert make(weight, None).num_bytes <= 1152 * 896 + 6 * 1152


def test_without_vnni_the_weight_only_kernel_takes_over(monkeypatch):
    x, weight, bias = layer(3, 40, 24)
    monkeypatch.setattr(int8, "cpu_kernels", lambda: NO_KERNELS)
    made = int8_linear(weight, bias)
    assert isinstance(made, Int8WeightOnlyLinear)
    assert relative_gap(made(x), F.linear(x, weight, bias)) < 0.02


def test_away_from_a_cpu_the_rounded_weight_is_held():
    made = int8_linear(torch.zeros(4, 4, device="meta"), None)
    assert isinstance(made, PlainLinear) and made.weight.dtype == torch.bfloat16


def test_here_the_dynamic_kernel_is_used_where_it_works():
    made = int8_linear(torch.randn(4, 4), None)
    assert isinstance(made, Int8DynamicLinear) is int8.cpu_kernels().has_packed_int8
