"""Compiled kernels: exact enough, whatever the shape, and what they were not given stays as it is."""

import natives
import pytest
import tiny
import torch
import torch.nn.functional as F
from compiled import LEVEL_NAMES, is_possible
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import relative_gap

from fastvlm import FastViTHD
from fastvlm.backends.cpu import encoder as vision
from fastvlm.backends.cpu import linear
from fastvlm.backends.native import encoder_linear as native_linear
from fastvlm.backends.native import kernels as native
from fastvlm.backends.native.kernels import NativeDepthwise
from fastvlm.backends.native.packed_layer import PackedLayer, PanelLayout

BFLOAT16 = torch.bfloat16
HALF_UNIT = 2**-8  # of bfloat16, relative to the number that is rounded
EITHER = [torch.bfloat16, torch.float32]
UNITS = {torch.bfloat16: HALF_UNIT, torch.float32: 2**-24}
MULTIPLES = st.integers(1, 27).map(lambda n: 32 * n)  # beyond 384 inputs a layer goes over them in parts
SIZES = st.one_of(MULTIPLES, st.integers(1, 70))


@pytest.fixture(scope="module", params=LEVEL_NAMES)
def every_level(request):
    """The kernels of each level."""
    return natives.built(request.param)


@is_possible
def test_gelu_of_every_number_that_there_is(every_level):
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(BFLOAT16)
    x = numbers[numbers.isfinite()]
    expected = F.gelu(x.double())
    result = every_level.gelu_(x.clone()).double()
    assert ((result - expected).abs() <= HALF_UNIT * expected.abs() + 1.5e-6).all()
    assert torch.equal(result[x.abs() > 6], F.relu(x[x.abs() > 6].double()))


@is_possible
def test_gelu_of_what_is_no_number(every_level):
    result = every_level.gelu_(torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]).to(BFLOAT16))
    assert result[0] == torch.inf and result[1:3].isnan().all() and result[3] == 0.83984375


@is_possible
@pytest.mark.parametrize("count", [1, 31, 32, 33, (1 << 16) - 1, (1 << 17) + 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_gelu_touches_what_it_was_given_and_nothing_else(every_level, count, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    whole = torch.ones(count + 64, dtype=BFLOAT16)
    every_level.gelu_(whole[32 : 32 + count])
    assert (whole[:32] == 1).all() and (whole[32 + count :] == 1).all()
    assert (whole[32 : 32 + count] == 0.83984375).all()


def convolved(x, weight, bias):
    """In float64, and the sum of magnitudes, which bounds the error of sums in float32."""
    x, weight = x.double().permute(0, 3, 1, 2), weight.double()
    pad, groups = weight.shape[-1] // 2, len(weight)
    y = F.conv2d(x, weight, None if bias is None else bias.double(), 1, pad, groups=groups)
    return y.permute(0, 2, 3, 1), F.conv2d(x.abs(), weight.abs(), None, 1, pad, groups=groups).permute(0, 2, 3, 1)


@is_possible
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70)),
    size=st.sampled_from([3, 7]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_depthwise_convolutions_of_any_shape(every_level, shape, size, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = EITHER[seed % 2] if EITHER[seed % 2] in every_level.dtypes else BFLOAT16
    x = torch.randn(*shape, generator=generator).to(dtype)
    weight = torch.randn(shape[-1], 1, size, size, generator=generator).to(dtype)
    bias = torch.randn(shape[-1], generator=generator).to(dtype) if has_bias else None
    kept = x.clone()
    result = NativeDepthwise(every_level, weight, bias)(x)
    expected, magnitude = convolved(x, weight, bias)
    assert torch.equal(x, kept) and result.shape == x.shape and result.dtype == dtype
    rounding = HALF_UNIT if dtype == BFLOAT16 else 0
    assert ((result.double() - expected).abs() <= rounding * expected.abs() + 1e-5 * (1 + magnitude)).all()


@is_possible
def test_what_is_no_number_stays_in_its_neighborhood_and_channel(every_level):
    x, weight = torch.zeros(1, 20, 20, 33, dtype=BFLOAT16), torch.ones(33, 1, 7, 7, dtype=BFLOAT16)
    x[0, 10, 10, 32] = torch.nan
    is_spoilt = NativeDepthwise(every_level, weight, None)(x).isnan()
    assert is_spoilt[0, 7:14, 7:14, 32].all() and is_spoilt.sum() == 49


@is_possible
@pytest.mark.parametrize(
    "x",
    [torch.ones(2, 4, 4, 8), torch.ones(1, 4, 4, 16, dtype=BFLOAT16)[..., ::2], torch.ones(1, 0, 4, 8, dtype=BFLOAT16)],
    ids=["float32", "strided", "empty"],
)
def test_what_they_do_not_take_is_refused_and_left_to_torch(kernels, x, monkeypatch):
    with pytest.raises(ValueError, match="expected a contiguous bfloat16 tensor"):
        kernels.gelu_(x)
    with pytest.raises(ValueError, match="expected a contiguous bfloat16 tensor"):
        NativeDepthwise(kernels, torch.ones(8, 1, 3, 3), None)(x)
    monkeypatch.setattr(linear, "native_kernels", lambda *_: kernels)
    torch.testing.assert_close(linear.gelu_(x.clone()), F.gelu(x))


def dtype_of(kernels, seed):
    """Each dtype that they take for some seeds."""
    return kernels.dtypes[seed % len(kernels.dtypes)]


def fitting(kernels, size):
    """`size`, or the next one that tile registers take."""
    return -(-size // 32) * 32 if kernels.has_tiles else size


@is_possible
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 65, 130), (1, 256, 192)])
@pytest.mark.parametrize("dtype", EITHER)
def test_features_are_the_same_with_them(every_level, monkeypatch, size, dtype):
    plain, image = tiny.loud(FastViTHD(tiny.vision_config())).eval(), tiny.images(*size)
    for module in (vision, linear, native_linear):
        monkeypatch.setattr(
            module, "native_kernels", lambda dtype: every_level if dtype in every_level.dtypes else None
        )
    fast = vision.FastEncoder(plain, dtype)
    ffns, is_native = [step for step in fast.steps if isinstance(step, vision.Ffn)], dtype in every_level.dtypes
    assert ffns and all((ffn.conv._native is not None) == is_native for ffn in ffns)
    widths = {ffn.widen.dense().shape[1]: isinstance(ffn.widen, native_linear.EncoderLinear) for ffn in ffns}
    assert widths == {width: is_native and (not every_level.has_tiles or width % 32 == 0) for width in widths}
    with torch.no_grad():
        assert relative_gap(fast(image), plain(image)) < (2e-2 if dtype == BFLOAT16 else 1e-4)


def layer(generator, outputs, inputs, dtype=BFLOAT16):
    """Weight (outputs, inputs) and bias (outputs,), results about as large as the inputs."""
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return weight.to(dtype), torch.randn(outputs, generator=generator)


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_a_packed_layer_holds_a_weight_as_it_is(sizes, outputs, inputs, seed):
    weight, bias = layer(torch.Generator().manual_seed(seed), outputs, inputs)
    layout = PanelLayout(sizes, is_padded=True)
    packed = PackedLayer.of(weight, bias, layout)
    assert torch.equal(packed.dense(), weight) and torch.equal(packed.bias[:outputs], bias)
    assert packed.weight.shape == layout.shape(outputs, inputs) and packed.weight.is_contiguous()
    assert packed.weight.count_nonzero() == weight.count_nonzero()
    assert len(packed.bias) == len(packed.weight) * layout.outputs and (packed.bias[outputs:] == 0).all()


@is_possible
@settings(max_examples=40, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 70), st.integers(150, 420)),
    inputs=SIZES,
    outputs=SIZES,
    epilogue=st.sampled_from(["plain", "gelu", "added", "heads"]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_linear_layers_of_any_shape(every_level, rows, inputs, outputs, epilogue, threads, seed):
    generator, dtype = torch.Generator().manual_seed(seed), dtype_of(every_level, seed)
    inputs, outputs = fitting(every_level, inputs), fitting(every_level, outputs)
    outputs = -(-outputs // 32) * 32 if epilogue == "heads" else outputs
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight, bias = layer(generator, outputs, inputs, dtype)
    whole = torch.ones(rows + 2, outputs, dtype=dtype)  # a row around the result that is not written
    result = whole[1:-1].view(-1, rows, 32) if epilogue == "heads" else whole[1:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        every_level.linear(x, PackedLayer.of(weight, bias, every_level.panel_layout(dtype)), epilogue, result)
    sums = F.linear(x.double(), weight.double(), bias.double())
    expected = {"gelu": F.gelu(sums), "added": sums + 1}.get(epilogue, sums)
    if epilogue == "heads":
        expected = expected.unflatten(1, (-1, 32)).transpose(0, 1)
    error = (result.double() - expected).abs()
    assert (error <= UNITS[dtype] * expected.abs() + (1e-4 if dtype == BFLOAT16 else 1e-5)).all()
    assert (whole[0] == 1).all() and (whole[-1] == 1).all()


@is_possible
@settings(max_examples=25, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 70), st.integers(150, 420)),
    channels=st.one_of(st.integers(1, 14).map(lambda n: 32 * n), st.integers(1, 70)),
    hidden=SIZES,
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_ffns_of_any_shape(every_level, rows, channels, hidden, threads, seed):
    generator, dtype = torch.Generator().manual_seed(seed), dtype_of(every_level, seed)
    channels, hidden = fitting(every_level, channels), fitting(every_level, hidden)
    x = torch.randn(rows, channels, generator=generator).to(dtype)
    widen, widen_bias = layer(generator, hidden, channels, dtype)
    narrow, narrow_bias = layer(generator, channels, hidden, dtype)
    whole, layout = torch.ones(rows + 2, channels, dtype=dtype), every_level.panel_layout(dtype)
    layers = PackedLayer.of(widen, widen_bias, layout), PackedLayer.of(narrow, narrow_bias, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        every_level.ffn(x, *layers, whole[1:-1])
    wide = F.gelu(F.linear(x.double(), widen.double(), widen_bias.double())).to(dtype).double()
    expected = 1 + F.linear(wide, narrow.double(), narrow_bias.double())
    # What is rounded in between may be rounded the other way: a unit of it, times its weight.
    unit = UNITS[dtype]
    slack = unit * F.linear(wide.abs(), narrow.double().abs()) + (1e-3 if dtype == BFLOAT16 else 2e-5)
    assert ((whole[1:-1].double() - expected).abs() <= unit * expected.abs() + slack).all()
    assert relative_gap(whole[1:-1], expected) < (2 * HALF_UNIT if dtype == BFLOAT16 else 1e-5)
    assert (whole[0] == 1).all() and (whole[-1] == 1).all()


@is_possible
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 128, 129, 300, 700])),
    heads=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_attention_over_any_number_of_tokens(every_level, batch, tokens, heads, scale, seed):
    generator, dtype = torch.Generator().manual_seed(seed), dtype_of(every_level, seed)
    qkv = (torch.randn(3, heads, batch * tokens, 32, generator=generator) * scale).to(dtype)
    kept = qkv.clone()
    result = every_level.attention(qkv, batch)
    query, key, value = qkv.double().unflatten(2, (batch, tokens)).transpose(1, 2).unbind(0)
    expected = F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2)
    assert torch.equal(qkv, kept) and result.dtype == dtype and result.shape == expected.shape
    # Probabilities are rounded to bfloat16: each may be half a unit off. Exponentials are 3e-6 off.
    slack = 2 * HALF_UNIT if dtype == BFLOAT16 else 1e-5 * max(1, scale**2)
    assert ((result.double() - expected).abs() <= slack * value.abs().amax()).all()


@is_possible
def test_scores_of_any_size_are_attended_to(every_level):
    for dtype in every_level.dtypes:
        qkv = torch.zeros(3, 1, 200, 32, dtype=dtype)
        qkv[0], qkv[1, :, 150], qkv[2] = 100, 100, torch.arange(200).to(dtype)[:, None]
        assert (every_level.attention(qkv, 1) == 150).all()
        qkv[1] = -100
        assert ((every_level.attention(qkv, 1).float() - 99.5).abs() < 1).all()


@is_possible
def test_what_is_no_number_stays_in_its_row(every_level):
    for dtype in every_level.dtypes:
        x = torch.ones(40, 64, dtype=dtype)
        x[17, 3] = torch.nan
        ones = PackedLayer.of(torch.ones(64, 64, dtype=dtype), None, every_level.panel_layout(dtype))
        for result in (
            every_level.linear(x, ones, "gelu", torch.ones_like(x)),
            every_level.ffn(x, ones, ones, torch.ones_like(x)),
        ):
            assert result[17].isnan().all() and result.isnan().sum() == 64
        qkv = torch.ones(3, 2, 40, 32, dtype=dtype)
        qkv[0, 1, 17] = torch.nan
        is_spoilt = every_level.attention(qkv, 1).isnan()
        assert is_spoilt[0, 17, 1].all() and is_spoilt.sum() == 32


@is_possible
def test_an_encoder_layer_is_a_linear_layer(every_level, monkeypatch):
    monkeypatch.setattr(native_linear, "native_kernels", lambda *_: every_level)
    for dtype in every_level.dtypes:
        weight, bias = layer(torch.Generator().manual_seed(0), 96, 64, dtype)
        x, other = torch.randn(2, 3, 64).to(dtype), torch.randn(2, 3, 96).to(dtype)
        for given_bias in (bias.to(dtype), None):
            made = native_linear.encoder_linear(weight, given_bias, has_gelu=False)
            plain = linear.PlainLinear(weight, given_bias)
            assert relative_gap(made(x), plain(x)) < 1e-2 and made(x[:0]).shape == (0, 3, 96)
            assert relative_gap(made.added(x, other.clone()), plain.added(x, other.clone())) < 1e-2
            assert torch.equal(made.dense(), weight) and made.num_bytes == weight.nbytes
        for odd in (weight[:95], weight[:, :60]):
            made = native_linear.encoder_linear(odd, None, has_gelu=False)
            assert (made is None) == every_level.has_tiles
    assert native_linear.encoder_linear(weight.double(), None, has_gelu=False) is None
    monkeypatch.setattr(native_linear, "native_kernels", lambda *_: None)
    assert native_linear.encoder_linear(weight, None, has_gelu=False) is None


@is_possible
def test_the_library_is_opened_with_its_tiles(kernels):
    assert kernels.has_tiles and kernels.has_threads and native.results_are_right(kernels, BFLOAT16)
