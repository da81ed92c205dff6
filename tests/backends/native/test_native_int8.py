"""8-bit linear layers of the encoder: the same integers at every level, and those of PyTorch's operations."""

import natives
import pytest
import torch
from compiled import LEVEL_NAMES, is_possible
from hypothesis import given
from hypothesis import strategies as st
from linears import relative_gap

from fastvlm.backends.cpu.encoder_int8 import ReferenceInt8Linear
from fastvlm.backends.native.int8_linear import NativeInt8Linear
from fastvlm.formats.encoder_rounding import LARGEST_PAIR, round_encoder_weight

pytestmark = is_possible
WIDTHS = st.one_of(st.integers(2, 70), st.sampled_from([128, 1024, 1030]))


@pytest.fixture(scope="module", params=LEVEL_NAMES)
def level(request):
    """The kernels of each level."""
    return natives.built(request.param)


def layers(level, values, scales=None, bias=None):
    """The layer of these values by the kernels and by PyTorch."""
    scales = torch.ones(len(values)) if scales is None else scales
    tensors = values, scales, torch.zeros(len(values)) if bias is None else bias
    return NativeInt8Linear(level, *tensors), ReferenceInt8Linear(*tensors)


def computed(layer, rows, outputs, **settings):
    out = torch.full((len(rows) + 2, outputs), 7.0, dtype=rows.dtype)
    layer.compute(rows, out[1:-1], **{"is_added": False, **settings})
    assert (out[[0, -1]] == 7).all()
    return out[1:-1]


def bytes_of(generator, rows, inputs):
    """Numbers that are rounded to themselves: 0..255, both of them in each row."""
    x = torch.randint(0, 256, (rows, inputs), generator=generator)
    x[:, 0], x[:, -1] = 0, 255
    return x


@given(rows=st.integers(1, 50), inputs=WIDTHS, outputs=st.integers(1, 70), seed=st.integers(0, 99))
def test_sums_are_exact(level, rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x = bytes_of(generator, rows, inputs)
    values = torch.randint(-64, 65, (outputs, inputs), generator=generator)
    for layer in layers(level, values.to(torch.int8)):
        assert torch.equal(computed(layer, x.float(), outputs).long(), x @ values.T)


@pytest.mark.parametrize("pair", [(127, 1), (64, 64), (-128 + 1, -1), (1, 127), (-64, -64)])
def test_the_largest_products_do_not_overflow(level, pair):
    assert sum(map(abs, pair)) == LARGEST_PAIR
    values, x = torch.tensor(pair).repeat(33, 40), torch.full((5, 80), 255)
    x[:, 0] = 0
    layer, _ = layers(level, values.to(torch.int8))
    assert torch.equal(computed(layer, x.float(), 33).long(), x @ values.T)


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.integers(1, 20),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_rows_are_rounded_as_by_pytorch(level, dtype, rows, width, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) * scale + scale).to(dtype)
    x[0] = scale  # a row of equal numbers
    ours, theirs = (computed(layer, x, width) for layer in layers(level, torch.eye(width, dtype=torch.int8)))
    step = (x.float().amax(-1) - x.float().amin(-1)).clamp_min(0)[:, None] / 255
    # Between two of the dtype's numbers one may be rounded up and the other down: they differ by its whole step then.
    neighbors = 1e-6 if dtype == torch.float32 else 2**-7
    assert ((ours - theirs).abs() <= step / 8 + neighbors * theirs.abs()).all()  # another integer differs by a step
    rounding = neighbors / 2
    assert ((ours.float() - x.float()).abs() <= 0.51 * step + rounding * x.float().abs() + 1e-36).all()


@given(rows=st.integers(1, 60), channels=st.integers(1, 40), ratio=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_ffn_is_that_of_pytorch(level, rows, channels, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = [torch.float32, torch.bfloat16][seed % 2]
    x, other = torch.randn(2, rows, channels, generator=generator).to(dtype).unbind(0)
    results = [other.clone(), other.clone()]
    wide = round_encoder_weight(torch.randn(ratio * channels, channels, generator=generator) / channels**0.5)
    thin = round_encoder_weight(torch.randn(channels, ratio * channels, generator=generator) / channels**0.5)
    biases = torch.randn(len(wide.scales), generator=generator), torch.randn(channels, generator=generator)
    pairs = zip(
        layers(level, wide.values, wide.scales, biases[0]),
        layers(level, thin.values, thin.scales, biases[1]),
        strict=True,
    )
    for result, (widen, narrow) in zip(results, pairs, strict=True):
        widen.add_ffn(narrow, x, result)
    assert relative_gap(*results) < (2e-3 if dtype == torch.float32 else 1e-2)


def test_results_can_be_added(level):
    layer, _ = layers(level, torch.full((19, 4), 3, dtype=torch.int8), bias=torch.full((19,), 0.5))
    x = torch.tensor([[0.0, 255, 1, 2]] * 3)
    assert (computed(layer, x, 19, is_added=True) == 7 + 3 * 258 + 0.5).all()


def test_what_is_no_number_stays_in_its_row(level):
    layer, reference = layers(level, torch.ones(20, 40, dtype=torch.int8))
    x = torch.randn(30, 40)
    x[3, 39], x[17, 0], x[21, 20] = torch.nan, torch.inf, -torch.inf
    for each in (layer, reference):
        assert computed(each, x, 20).isnan().any(1).nonzero().flatten().tolist() == [3, 17, 21]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 97, 300])
def test_every_row_is_computed_by_any_number_of_threads(level, threads, rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, reference = layers(level, torch.arange(-60, 60).reshape(24, 5).to(torch.int8))
    x = torch.randn(rows, 5)
    torch.testing.assert_close(computed(layer, x, 24), computed(reference, x, 24), rtol=1e-4, atol=1e-3)


def test_other_tensors_are_refused(level):
    layer, _ = layers(level, torch.ones(8, 4, dtype=torch.int8))
    for x, out in [
        (torch.ones(2, 5), torch.ones(2, 8)),
        (torch.ones(2, 4), torch.ones(3, 8)),
        (torch.ones(2, 4).double(), torch.ones(2, 8).double()),
        (torch.ones(2, 4), torch.ones(2, 8).bfloat16()),
        (torch.ones(4, 2).T, torch.ones(2, 8)),
    ]:
        with pytest.raises(ValueError, match="expected a contiguous"):
            layer.compute(x, out, is_added=False)
