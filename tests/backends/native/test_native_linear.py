"""Compiled linears of 16, 8 and 4 bits against float32, for any shape; rows that do not know each other."""

import natives
import pytest
import torch
from compiled import is_possible
from hypothesis import given
from hypothesis import strategies as st
from linears import layer, relative_gap
from torch import Tensor

from fastvlm.backends.native import linear as native_linear
from fastvlm.backends.native.kernels import NativeKernels
from fastvlm.backends.native.linear import NativeLinear, NativeLinears, has_native_linears
from fastvlm.errors import CheckpointError, ConfigError
from fastvlm.formats.rounding import Int4Weight, Int8Weight, quantize_int4, quantize_int8

pytestmark = is_possible

BFLOAT16 = torch.bfloat16
FORMS = {32: Tensor.float, 16: lambda weight: weight, 8: quantize_int8, 4: quantize_int4}
# With bfloat16 rounding the result takes 0.0017, and with AMX and 4 bits the weight is rounded to bfloat16 too, or one
# row to two 8-bit terms. In float32 rows are rounded to 16 bits for 8-bit weights, to 13 at least for 4-bit ones.
LARGEST_GAPS = {
    torch.float32: {32: 1e-6, 16: 1e-6, 8: 3e-5, 4: 2e-4},
    BFLOAT16: {32: 2.5e-3, 16: 2.5e-3, 8: 2.5e-3, 4: 3.5e-3},
}
ALL_BITS = [32, 16, 8, 4]


@pytest.fixture(autouse=True, scope="module", params=natives.CASES)
def kernels(request):
    """The kernels of a level, with the dtype that is tested; what these tests ask for."""
    level, DTYPE[:] = request.param[0], [request.param[1]]
    KERNELS[:] = [natives.built(level)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_linear, "native_kernels", lambda dtype: KERNELS[0] if dtype in KERNELS[0].dtypes else None)
        yield KERNELS[0]


KERNELS: list[NativeKernels] = []
DTYPE: list[torch.dtype] = []


def dtype():
    return DTYPE[0]


def largest_gap(bits):
    return LARGEST_GAPS[dtype()][bits]


def check_bits(bits):
    if bits == 32 and KERNELS[0].has_tiles:
        pytest.skip("AMX takes no float32")


def plain(form):
    """The weight that `form` stands for, float64."""
    if isinstance(form, Int4Weight):
        return form.columns(0, len(form.packed), torch.float64)[:, : form.out_features].T
    return form.double() if isinstance(form, torch.Tensor) else form.dequantize().double()


def made(bits, sizes, inputs, seed=0):
    """The linear of as many weights as there are `sizes`, every other one with a bias, and what it should give."""
    check_bits(bits)
    parts = [layer(1, inputs, size, BFLOAT16, seed=seed + i)[1:] for i, size in enumerate(sizes)]
    forms = [FORMS[bits](weight) for weight, _ in parts]
    biases = [bias if i % 2 == 0 else None for i, (_, bias) in enumerate(parts)]

    def expected(x):
        results = [x.double() @ plain(form).T for form in forms]
        return torch.cat([y if b is None else y + b.double() for y, b in zip(results, biases, strict=True)], -1)

    return NativeLinear(KERNELS[0], forms, biases), expected


@given(
    bits=st.sampled_from(ALL_BITS),
    rows=st.integers(1, 70),
    inputs=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    threads=st.integers(1, 3),
)
def test_equals_float64_for_any_shape(bits, rows, inputs, sizes, threads):
    inputs = max(32, inputs // 32 * 32) if bits == 4 else inputs
    x = layer(rows, inputs, 1, dtype(), seed=7)[0]
    linear, expected = made(bits, sizes, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = linear(x)
    finally:
        torch.set_num_threads(before)
    assert result.dtype == dtype() and result.shape == (rows, sum(sizes))
    bound = 2**-7 * (expected(x).abs() + x.double().norm(dim=-1, keepdim=True) / inputs**0.5)
    assert ((result.double() - expected(x)).abs() <= bound).all()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("rows", [1, 4, 9, 33, 600])
@pytest.mark.parametrize(("inputs", "sizes"), [(896, (896, 128, 128)), (4864, (896,)), (1056, (96, 96))])
def test_errors_are_those_of_rounding(bits, rows, inputs, sizes):
    rows = min(rows, natives.most_rows(KERNELS[0]))
    x = layer(rows, inputs, 1, dtype(), seed=3)[0]
    linear, expected = made(bits, sizes, inputs)
    assert relative_gap(linear(x), expected(x)) < largest_gap(bits)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_groups_of_any_size(group_size, rows):
    x, weight, bias = layer(rows, 384, 200, dtype())
    form = quantize_int4(weight, group_size)
    result = NativeLinear(KERNELS[0], [form], [bias])(x)
    assert relative_gap(result, x.double() @ plain(form).T + bias.double()) < largest_gap(4)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("rows", [2, 17, 33, 300])
def test_a_row_does_not_depend_on_its_neighbors(bits, rows):
    """The same bits, if as many rows are multiplied; alone, or beside more than 32, the last one may differ."""
    rows = min(rows, natives.most_rows(KERNELS[0]))
    x = layer(rows, 416, 1, dtype(), seed=5)[0]
    linear, _ = made(bits, (100, 33), 416)
    others = torch.randn(rows, 416).to(dtype()) * 100
    others[rows // 2] = x[rows // 2]
    assert torch.equal(linear(x)[rows // 2], linear(others)[rows // 2])
    assert relative_gap(linear(x)[rows // 2], linear(x[rows // 2 :][:1])[0]) < 2 * largest_gap(bits)


@pytest.mark.parametrize(("bits", "rows"), [(16, 24), (8, 24), (4, 4)])
def test_few_rows_have_the_same_bits_as_alone(bits, rows):
    x = layer(rows, 416, 1, dtype(), seed=5)[0]
    linear, _ = made(bits, (100, 33), 416)
    assert torch.equal(linear(x), torch.cat([linear(row[None]) for row in x]))


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows_in_its_row_alone(bits, rows, bad):
    x = layer(rows, 96, 1, dtype())[0]
    linear, expected = made(bits, (70,), 96)
    x[rows // 2, 5] = bad
    result = linear(x)
    is_bad = ~result.isfinite()
    assert is_bad[rows // 2].any() and not is_bad.any(-1)[torch.arange(rows) != rows // 2].any()
    assert is_bad[rows // 2].all() or not torch.tensor(bad).isnan()
    rest = torch.arange(rows) != rows // 2
    if rows > 1:
        assert relative_gap(result[rest], expected(x[rest])) < largest_gap(bits)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("rows", [1, 40])
def test_zeros_give_the_bias(bits, rows):
    linear, expected = made(bits, (70,), 96)
    x = torch.zeros(rows, 96, dtype=dtype())
    assert torch.equal(linear(x), expected(x).to(dtype()))


def test_any_number_of_leading_dimensions_and_views_with_gaps():
    linear, expected = made(16, (20,), 64)
    for shape in ((64,), (0, 64), (2, 0, 64), (2, 3, 64)):
        x = torch.randn(shape).to(dtype())
        assert linear(x).shape == (*shape[:-1], 20)
        torch.testing.assert_close(linear(x).double(), expected(x), atol=2e-2, rtol=2e-2)
    x = torch.randn(64, 6).to(dtype()).T
    torch.testing.assert_close(linear(x).double(), expected(x), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("rows", [1, 33])
def test_results_touch_nothing_else(kernels, rows):
    linear, expected = made(16, (50,), 64)
    whole = torch.full((rows + 2, 50), 7.0, dtype=dtype())
    x = torch.randn(rows, 64).to(dtype())
    kernels.multiply(linear.native_weights, x, whole[1:-1])
    assert (whole[0] == 7).all() and (whole[-1] == 7).all()
    assert relative_gap(whole[1:-1], expected(x)) < largest_gap(16)


def test_weights_are_used_where_they_lie_and_held():
    _, weight, _ = layer(1, 64, 32, BFLOAT16)
    linear = NativeLinears(lambda w, is_head: w, dtype())([weight], [None], is_head=False)
    x = torch.ones(1, 64, dtype=dtype())
    weight.zero_()
    assert linear.num_bytes == weight.nbytes and (linear(x) == 0).all()
    weight.fill_(1)
    del weight
    assert (linear(x) == 64).all()


def test_what_the_kernels_do_not_take_is_told(monkeypatch):
    weight = layer(1, 64, 32)[1].half()
    assert native_linear.native_linear([weight], [None], dtype()) is None
    with pytest.raises(CheckpointError, match="with gaps"):
        Int8Weight(torch.zeros(64, 64, dtype=torch.int8).T[::2], torch.ones(32))
    assert native_linear.native_linear([quantize_int4(weight).in_blocks(32)], [None], dtype()) is None
    with pytest.raises(ConfigError, match="FASTVLM_KERNELS=torch"):
        NativeLinears(lambda w, is_head: w, dtype())([weight], [None], is_head=False)
    assert has_native_linears(dtype()) and not has_native_linears(torch.float16)
    monkeypatch.setattr(native_linear, "native_kernels", lambda *_: None)
    assert native_linear.native_linear([weight.to(BFLOAT16)], [None], dtype()) is None
    assert not has_native_linears(dtype())
