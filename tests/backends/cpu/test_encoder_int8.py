"""The encoder in 8 bits: near the plain one, the same stored and rounded while opening, with and without kernels."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from linears import relative_gap

import fastvlm
from fastvlm import FastViTHD
from fastvlm.backends.cpu import encoder_int8
from fastvlm.backends.cpu.encoder import FastEncoder, Ffn
from fastvlm.backends.cpu.encoder_int8 import Int8Linear, round_rows
from fastvlm.backends.local import make_backend
from fastvlm.conversion.quantize import quantize
from fastvlm.engine.engine import Engine
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.encoder_rounding import (
    LARGEST_PAIR,
    check_pairs,
    round_encoder_weight,
    rounded_in_encoder,
    weight_shape,
)
from fastvlm.formats.names import ENCODER
from fastvlm.formats.quantized_file import QuantizationOptions
from fastvlm.formats.rounding import Int8Weight

ODD = {"embed_dims": [5, 10, 10, 160, 160], "mlp_ratios": [3, 2, 1, 4, 3]}


@pytest.fixture(params=["compiled", "torch"])
def any_kernels(request, monkeypatch):
    """Compiled kernels where there are some, and without them."""
    if request.param == "torch":
        monkeypatch.setattr(encoder_int8, "int8_kernels", lambda: None)


def encoder(**model_args):
    return tiny.loud(FastViTHD(tiny.vision_config(**model_args))).eval()


def rounded(module):
    """The rounded weight of a name of `module`."""
    weights = dict(module.named_parameters())
    names = rounded_in_encoder(ENCODER + name for name in weights)
    return lambda name: round_encoder_weight(weights[name]) if ENCODER + name in names else None


@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_args", [{}, ODD, {"inference_mode": False}], ids=["tiny", "odd", "training"])
@torch.no_grad()
def test_features_are_near_those_in_float32(model_args, dtype):
    module, images = encoder(**model_args), tiny.images(2, 160, 96)
    fast = FastEncoder(module, dtype, rounded(module))
    features, expected = fast(images), module(images)
    assert features.dtype == dtype
    assert 1e-4 < relative_gap(features, expected) < 0.03


@torch.no_grad()
def test_pytorch_computes_what_the_kernels_do(monkeypatch):
    module, images = encoder(), tiny.images(1)
    expected = FastEncoder(module, torch.float32, rounded(module))(images)
    monkeypatch.setattr(encoder_int8, "int8_kernels", lambda: None)
    assert relative_gap(FastEncoder(module, torch.float32, rounded(module))(images), expected) < 5e-3


def test_attention_and_all_ffns_but_the_last_stages_are_rounded():
    module = encoder()
    names = [name.removeprefix(ENCODER) for name in rounded_in_encoder(ENCODER + name for name in module.state_dict())]
    ffns = {f"stages.{stage}.blocks.0.mlp.fc{part}.weight" for stage in range(4) for part in (1, 2)}
    attention = {f"stages.{stage}.blocks.0.token_mixer.{part}.weight" for stage in (3, 4) for part in ("qkv", "proj")}
    assert set(names) == ffns | attention
    fast = FastEncoder(module, torch.float32, rounded(module))
    assert [step.int8 is not None for step in fast.steps if isinstance(step, Ffn)] == [True] * 4 + [False]


@given(
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 65),
    scale=st.sampled_from([0.0, 1e-38, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_weights_are_rounded_to_the_nearest_within_the_limit_of_pairs(outputs, inputs, scale, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * scale
    result = round_encoder_weight(weight)
    check_pairs(result)
    assert result.values.abs().max() <= 127
    assert ((result.dequantize() - weight).abs() <= 0.5001 * result.scales[:, None]).all()


def test_neighbors_that_would_overflow_are_refused():
    values = torch.zeros(3, 7, dtype=torch.int8)
    values[1, 4], values[1, 5] = -100, 29
    with pytest.raises(CheckpointError, match=f"magnitudes of 129 together; expected at most {LARGEST_PAIR}"):
        Int8Linear(Int8Weight(values, torch.ones(3)), None)


def test_rows_of_equal_numbers_and_of_none():
    values, scales, lows = round_rows(torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    assert not values.any() and lows.flatten().tolist() == [3.0, 0.0] and scales.isfinite().all()
    layer = Int8Linear(round_encoder_weight(torch.randn(5, 8)), None)
    assert layer(torch.ones(0, 8)).shape == (0, 5)


def test_shapes_of_stored_weights():
    block = f"{ENCODER}stages.0.blocks.1."
    assert weight_shape(f"{block}mlp.fc1.weight", 8, 4) == (8, 4, 1, 1)
    assert weight_shape(f"{block}token_mixer.qkv.weight", 8, 4) == (8, 4)
    assert weight_shape("model.language_model.layers.0.mlp.up_proj.weight", 8, 4) == (8, 4)


@pytest.fixture(scope="module")
def checkpoint():
    return fastvlm.open_checkpoint("mini")


def features(checkpoint, **settings):
    return Engine.from_checkpoint(checkpoint, dtype=torch.float32, **settings).encode(tiny.images(1, 128, 128))


@torch.no_grad()
def test_the_mini_is_as_near_as_documented(checkpoint):
    exact, fast = features(checkpoint), features(checkpoint, encoder_bits=8)
    assert 1e-3 < relative_gap(fast, exact) < 0.05


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The mini with an encoder of 8 bits."""
    target = tmp_path_factory.mktemp("stored") / "mini"
    report = quantize("mini", target, QuantizationOptions(encoder_bits=8))
    assert report.options.encoder_bits == 8
    return target


def test_stored_is_what_rounding_while_opening_gives(checkpoint, stored):
    opened = fastvlm.open_checkpoint(stored)
    expected = features(checkpoint, encoder_bits=8)
    assert torch.equal(features(opened), expected)
    assert torch.equal(features(opened, encoder_bits=8), expected)


def test_other_devices_and_references_get_the_dequantized_weights(checkpoint, stored):
    opened = fastvlm.open_checkpoint(stored)
    name = f"{ENCODER}stages.3.blocks.0.mlp.fc1.weight"
    weight, before = opened.tensors[name], checkpoint.tensors[name]
    assert weight.shape == before.shape and weight.dtype == before.dtype
    assert 1e-3 < relative_gap(weight, before) < 0.02
    assert 1e-3 < relative_gap(features(opened, kernels="reference"), features(checkpoint)) < 0.05
    model, _ = fastvlm.load(stored)
    assert torch.equal(model.state_dict()[name], weight)


@pytest.mark.usefixtures("any_kernels")
def test_engines_share_the_encoder_unless_its_weights_change(checkpoint):
    base = Engine.from_checkpoint(checkpoint, encoder_bits=8)
    name, other = f"{ENCODER}stages.0.blocks.0.mlp.fc2.weight", "model.language_model.norm.weight"
    for changed, is_shared in ((other, True), (name, False)):
        again = checkpoint.with_tensors({changed: checkpoint.tensors[changed] * 1.5})
        engine = Engine.from_checkpoint(again, encoder_bits=8, base=base)
        assert (engine.backend.images.encoder is base.backend.images.encoder) == is_shared


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder_bits": 4}, "encoder_bits is 4; expected 16 or 8"),
        ({"encoder_bits": 8, "device": torch.device("meta")}, "on meta; weights of 8 bits need a CPU"),
        ({"encoder_bits": 8, "kernels": "reference"}, "kernels is 'reference'"),
    ],
)
def test_what_cannot_be_computed_in_8_bits_is_refused(checkpoint, settings, words):
    with pytest.raises(UsageError, match=words):
        make_backend(checkpoint, **settings)


def test_an_encoder_of_8_bits_takes_less_memory():
    module = encoder(embed_dims=[32, 64, 128, 256, 512])
    steps = [FastEncoder(module, torch.float32, weights).steps for weights in (lambda _: None, rounded(module))]
    plain, small = ([step for step in each if isinstance(step, Ffn)] for each in steps)
    for float_ffn, int8_ffn in zip(plain[:-1], small[:-1], strict=True):
        assert sum(layer.num_bytes for layer in int8_ffn.int8) < 0.4 * sum(
            layer.num_bytes for layer in (float_ffn.widen, float_ffn.narrow)
        )
        assert not hasattr(int8_ffn, "widen")
