"""Files of quantized weights that somebody changed: each is refused with one error, before a kernel reads from it."""

import functools
import json

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file

from fastvlm.conversion.quantize import round_linears
from fastvlm.errors import CheckpointError, ConfigError
from fastvlm.formats import quantized_file
from fastvlm.formats.names import ENCODER
from fastvlm.formats.quantized_file import QuantizationOptions, load_quantized, save_quantized
from fastvlm.formats.quantized_metadata import parse_metadata
from fastvlm.formats.rounding import Int4Weight, Int8Weight, quantize_int4, quantize_int8

KEY = "fastvlm_quantised"
KINDS = {"values": torch.int8, "scales": torch.float32, "packed": torch.uint8, "scales_and_zeros": torch.bfloat16}
DTYPES = [torch.int8, torch.uint8, torch.bfloat16, torch.float16, torch.float32, torch.int16, torch.int64, torch.bool]


@functools.cache
def model():
    return tiny.model(text={"hidden_size": 64, "intermediate_size": 128})


@pytest.fixture(scope="module", params=[8, 4])
def saved(request, tmp_path_factory):
    """A good file's tensors and what it says of itself, and where changed ones go."""
    quantized = round_linears(model().state_dict().__getitem__, 2, QuantizationOptions(request.param))
    file = tmp_path_factory.mktemp("saved") / "weights.safetensors"
    save_quantized(quantized, file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()[KEY]
    return load_file(file), about, file.with_name("changed.safetensors")


def refusal(tensors, about, file):
    """The error with which the file of these is refused, or None."""
    save_file(tensors, file, metadata={KEY: about})
    try:
        load_quantized(file)
    except CheckpointError as error:
        reason = str(error)
    else:
        return None
    assert str(file) in reason and "Quantize the model again." in reason
    return reason


def test_a_good_file_is_read(saved):
    assert refusal(*saved) is None


@given(st.data())
def test_a_tensor_of_another_shape_or_dtype_is_refused(saved, data):
    tensors, about, file = saved
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    dimension = data.draw(st.integers(0, tensor.dim() - 1))
    size = tensor.shape[dimension]
    change = data.draw(st.sampled_from(["shorter", "longer", "flat", "deeper", "dtype"]))
    if change == "shorter":
        changed = tensor.narrow(dimension, 0, data.draw(st.integers(0, size - 1)))
    elif change == "longer":
        changed = torch.cat([tensor, tensor.narrow(dimension, 0, data.draw(st.integers(1, size)))], dimension)
    elif change == "flat" and tensor.dim() > 1:
        changed = tensor.flatten()
    elif change == "dtype":
        changed = tensor.to(data.draw(st.sampled_from([dtype for dtype in DTYPES if dtype != tensor.dtype])))
    else:
        changed = tensor[None]
    reason = refusal({**tensors, name: changed.contiguous()}, about, file)
    index, part = name.split(".")
    if part == "values" and dimension == 1 and change in ("shorter", "longer") and changed.numel():
        assert reason is None  # the decoder knows how many inputs there are: tests/backends/cpu/test_rounded.py
        return
    assert reason is not None, (name, changed.shape)
    assert f"linear {index}" in reason and ("expected" in reason)
    if change == "dtype":
        assert f"{part} is {changed.dtype} of shape {list(changed.shape)}; expected {KINDS[part]}" in reason


@given(st.data())
def test_a_tensor_that_is_missing_or_too_many_is_named(saved, data):
    tensors, about, file = saved
    name = data.draw(st.sampled_from(sorted(tensors)))
    left = {key: tensor for key, tensor in tensors.items() if key != name}
    assert "is missing" in refusal(left, about, file)
    extra = data.draw(st.sampled_from(["9999.values", "0000.bias", "model.norm.weight"]))
    assert f"a tensor {extra!r}" in refusal({**tensors, extra: torch.zeros(2)}, about, file)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -1e-3, 0.0, 1e30])
def test_scales_that_no_weight_was_rounded_with_are_found(saved, bad):
    tensors, about, file = saved
    for name in [name for name in tensors if name.split(".")[1].startswith("scales")][:3]:
        changed = tensors[name].clone()
        changed.view(-1)[-changed.shape[-1] if changed.dim() > 1 else -1] = bad  # the last scale, not a zero
        assert "it is damaged" in refusal({**tensors, name: changed}, about, file)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf, -1e30])
def test_zeros_that_no_weight_was_rounded_with_are_found(saved, bad):
    tensors, about, file = saved
    for name in [name for name in tensors if name.endswith("scales_and_zeros")][:2]:
        changed = tensors[name].clone()
        changed[0, 5, 1] = bad
        assert "it is damaged" in refusal({**tensors, name: changed}, about, file)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**4000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@given(st.data())
def test_metadata_that_was_changed_is_refused_or_harmless(saved, data):
    tensors, about, file = saved
    document = json.loads(about)
    path = data.draw(st.sampled_from(list(places(document))))
    changed = replaced(document, path, data.draw(ANYTHING))
    reason = refusal(tensors, json.dumps(changed), file)
    if path[:1] in {("products",), ("options",)} and changed != document:
        harmless = {("options", "bits"), ("options", "head_bits"), ("options", "group_size")}  # another allowed number
        assert reason is not None or path in harmless
    if reason is None:
        for weight in load_quantized(file).weights:
            assert weight.dequantize().shape == (weight.out_features, weight.in_features)


@pytest.mark.parametrize(
    "about", ["", "no JSON", "[]", "null", '"text"', "[" * 100_000, '{"format": 3}', '{"format": ' + "9" * 5000 + "}"]
)
def test_metadata_that_is_no_object_of_ours_is_refused(saved, about):
    tensors, _, file = saved
    assert refusal(tensors, about, file) is not None


@pytest.mark.parametrize("change", ["unknown", "missing", "nested"])
def test_keys_that_are_unknown_or_missing_are_named(saved, change):
    document = json.loads(saved[1])
    if change == "unknown":
        document["zeros"] = 1
    elif change == "missing":
        del document["digest"]
    else:
        document["products"][1]["columns"] = [1]
    expected = {
        "unknown": "unknown key 'zeros'",
        "missing": "lacks the key 'digest'",
        "nested": r"products\[1\] has an",
    }
    with pytest.raises(ValueError, match=expected[change]):
        parse_metadata(json.dumps(document), ["3"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Int8Weight(torch.zeros(64, 32, dtype=torch.int8), torch.ones(1)),
        lambda: Int8Weight(torch.zeros(64, dtype=torch.int8), torch.ones(64)),
        lambda: Int8Weight(torch.zeros(64, 0, dtype=torch.int8), torch.ones(64)),
        lambda: Int8Weight(torch.zeros(64, 32), torch.ones(64)),
        lambda: Int4Weight(torch.zeros(64, 16, dtype=torch.uint8), torch.ones(1, 128, 2).bfloat16(), 100),
        lambda: Int4Weight(torch.zeros(128, 16, dtype=torch.uint8), torch.ones(1, 64, 2).bfloat16(), 100),
        lambda: Int4Weight(torch.zeros(128, 16, dtype=torch.uint8), torch.ones(2, 128, 2).bfloat16(), 100),
        lambda: Int4Weight(torch.zeros(128, 15, dtype=torch.uint8), torch.ones(1, 128, 2).bfloat16(), 100),
        lambda: Int4Weight(torch.zeros(128, 16, dtype=torch.uint8), torch.tensor(1.0).bfloat16(), 100),
        lambda: Int4Weight(torch.zeros(128, dtype=torch.uint8), torch.ones(1, 128, 2).bfloat16(), 100),
    ],
)
def test_no_rounded_weight_has_tensors_that_do_not_fit(make):
    with pytest.raises(CheckpointError, match="expected"):
        make()


def test_what_is_rounded_here_fits():
    weight = torch.randn(100, 96)
    assert quantize_int8(weight).dequantize().shape == quantize_int4(weight).dequantize().shape == (100, 96)


ENCODER_WEIGHTS = [f"{ENCODER}stages.{stage}.blocks.0.mlp.fc{part}.weight" for stage in (0, 1) for part in (1, 2)]


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory):
    """As `saved`, with an encoder of 8 bits."""
    options = QuantizationOptions(encoder_bits=8)
    quantized = round_linears(model().state_dict().__getitem__, 2, options, encoder=ENCODER_WEIGHTS)
    file = tmp_path_factory.mktemp("saved") / "weights.safetensors"
    save_quantized(quantized, file)
    found = load_quantized(file)
    assert found.options == options and [linear.names for linear in found.linears[-4:]] == [
        (n,) for n in ENCODER_WEIGHTS
    ]
    weight = model().state_dict()[ENCODER_WEIGHTS[0]]
    assert found.shapes[ENCODER_WEIGHTS[0]] == weight.shape == found.tensor(ENCODER_WEIGHTS[0]).shape
    with safe_open(file, "pt") as opened:
        about = opened.metadata()[KEY]
    return load_file(file), about, file.with_name("changed.safetensors")


def test_a_rounded_encoder_has_a_format_that_earlier_versions_refuse(with_encoder, monkeypatch):
    assert json.loads(with_encoder[1])["format"] == "4"
    monkeypatch.setattr(quantized_file, "_FORMATS", ("3",))
    assert "the quantized format '4'; this version reads '3'" in refusal(*with_encoder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layers: layers[:-1], "mlp.fc1.weight without"),
        (lambda layers: [*layers, layers[-1]], "a layer twice"),
        (lambda layers: layers[:-4], "no rounded layers"),
        (lambda layers: [layers[-1], *layers[:-1]], "where a decoder has"),
    ],
)
def test_layers_of_the_encoder_that_do_not_fit_are_refused(with_encoder, change, words):
    tensors, about, file = with_encoder
    document = json.loads(about)
    document["products"] = change(document["products"])
    assert words in refusal(tensors, json.dumps(document), file)


def test_an_encoder_of_4_bits_is_refused(with_encoder):
    tensors, about, file = with_encoder
    index = len(json.loads(about)["products"]) - 1
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{index:04d}")}
    packed = quantize_int4(torch.randn(tensors[f"{index:04d}.values"].shape[0], 64))
    four = {f"{index:04d}.{name}": tensor for name, tensor in packed.tensors.items()}
    assert "4 bits; expected 8 in the encoder" in refusal({**rest, **four}, about, file)


def test_an_encoder_without_layers_to_round_is_refused():
    with pytest.raises(CheckpointError, match="none of its layers can be rounded"):
        round_linears(model().state_dict().__getitem__, 2, QuantizationOptions(encoder_bits=8))
    with pytest.raises(ConfigError, match="encoder_bits is 4; expected 16 or 8"):
        QuantizationOptions(encoder_bits=4)
