"""Plain and packed linears against `F.linear`, and what stands in where a kernel is missing."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from linears import NO_KERNELS, layer, relative_gap

from fastvlm.backends.cpu import linear
from fastvlm.backends.cpu import probe as cpu
from fastvlm.backends.cpu.linear import PackedLinear, many_rows_linear, packed_linear
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.linear import PlainLinear

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 130),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
    make=st.sampled_from([PlainLinear, many_rows_linear, packed_linear]),
)
def test_equals_f_linear_for_any_shape(rows, inputs, outputs, dtype, has_bias, activation, make):
    x, weight, bias = layer(rows, inputs, outputs, dtype)
    bias = bias if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if activation == "gelu" else expected
    result = make(weight, bias, activation)(x)
    assert result.dtype == dtype and result.shape == (rows, outputs)
    assert (result.double() - expected).abs().max() <= TOLERANCES[dtype] * (1 + expected.abs().max())


@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 24), (5, 24), (2, 3, 24)])
def test_with_and_without_tile_registers_gelu_and_sums_are_the_same(monkeypatch, has_tiles, dtype, shape):
    kernels = dataclasses.replace(cpu_kernels(), has_bfloat16_tiles=has_tiles)
    monkeypatch.setattr(linear, "cpu_kernels", lambda: kernels)
    _, weight, bias = layer(1, 24, 10, dtype)
    x, other = torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 10).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    exact = F.linear(x.double(), weight.double(), bias.double())
    result = packed_linear(weight, bias, "gelu")(x)
    torch.testing.assert_close(result, F.gelu(exact).to(dtype), atol=tolerance, rtol=tolerance)
    for make in (PlainLinear, packed_linear):
        added = make(weight, bias).added(x, other.clone())
        torch.testing.assert_close(added, (exact + other.double()).to(dtype), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("make", [PlainLinear, packed_linear])
@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24), (24,), (2, 3, 24), (2, 1, 5, 24)])
def test_any_number_of_leading_dimensions(make, shape):
    _, weight, bias = layer(1, 24, 10)
    x = torch.randn(shape)
    torch.testing.assert_close(make(weight, bias)(x), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_a_view_with_gaps_is_read_as_a_tensor():
    x, weight, bias = layer(6, 40, 10)
    torch.testing.assert_close(
        packed_linear(weight, bias)(x[::2]), F.linear(x[::2], weight, bias), atol=1e-5, rtol=1e-5
    )
    turned = x.T.contiguous().T
    torch.testing.assert_close(packed_linear(weight, bias)(turned), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_comes_back_bit_for_bit(dtype):
    _, weight, bias = layer(1, 33, 17, dtype)
    for make in (PlainLinear, packed_linear):
        made = make(weight, bias)
        assert torch.equal(made.dense(), weight)
        assert made.num_bytes == weight.nbytes


def test_a_parameter_keeps_its_graph_to_itself():
    weight = torch.nn.Parameter(torch.randn(8, 8))
    for make in (PlainLinear, packed_linear):
        assert not make(weight, torch.nn.Parameter(torch.zeros(8)))(torch.randn(2, 8)).requires_grad


def test_without_kernels_every_factory_is_plain(monkeypatch):
    x, weight, bias = layer(3, 24, 10, torch.bfloat16)
    monkeypatch.setattr(linear, "cpu_kernels", lambda: NO_KERNELS)
    made = packed_linear(weight, bias, "gelu")
    assert isinstance(made, PlainLinear)
    assert relative_gap(made(x), F.gelu(F.linear(x, weight, bias))) < 1e-2


def test_other_dtypes_are_plain():
    _, weight, _ = layer(1, 8, 8, torch.float64)
    assert isinstance(packed_linear(weight, None), PlainLinear)


def test_here_packing_is_used_where_it_works():
    _, weight, _ = layer(1, 8, 8)
    assert isinstance(packed_linear(weight, None), PackedLinear) is cpu_kernels().has_packed_float32


def test_a_kernel_that_gives_wrong_numbers_or_is_missing_is_not_there():
    def missing():
        raise NotImplementedError

    assert cpu._works(lambda: 0.0)
    assert not cpu._works(lambda: 1.0)
    assert not cpu._works(lambda: float("nan"))
    assert not cpu._works(missing)


def test_kernels_are_asked_for_by_dtype():
    only_float32 = dataclasses.replace(NO_KERNELS, has_packed_float32=True)
    assert only_float32.has_packed(torch.float32)
    assert not only_float32.has_packed(torch.bfloat16)
    assert not only_float32.has_packed(torch.float16)


def test_a_cpu_without_vnni_does_not_multiply_8_bits(monkeypatch):
    """oneDNN would, and its 16-bit sums would overflow without a word."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not cpu_kernels.__wrapped__().has_packed_int8


@pytest.mark.parametrize(("capability", "block"), [("AVX512", 64), ("AVX2", 32), ("DEFAULT", 0)])
def test_the_int4_layout_is_believed_only_if_it_is_the_kernels(monkeypatch, capability, block):
    own = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert cpu_kernels.__wrapped__().int4_block in ((block,) if capability == own else (0,))


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("has_fast_plain", [False, True])
def test_many_rows_take_the_faster_way_and_give_the_same(monkeypatch, activation, has_fast_plain):
    kernels = dataclasses.replace(cpu_kernels(), has_fast_plain_float32=has_fast_plain)
    monkeypatch.setattr(linear, "cpu_kernels", lambda: kernels)
    monkeypatch.setattr(linear, "encoder_linear", lambda *_, **__: None)  # without compiled kernels
    x, weight, bias = layer(300, 24, 10)
    made = many_rows_linear(weight, bias, activation)
    assert isinstance(made, PlainLinear) or not has_fast_plain
    assert relative_gap(made(x), packed_linear(weight, bias, activation)(x)) < 1e-5
    assert type(many_rows_linear(weight.bfloat16(), None)) is type(packed_linear(weight.bfloat16(), None))
