"""Quantized weights: rounding, the file, and a decoder that runs on it."""

import dataclasses
import functools
import json
import struct
from pathlib import Path

import engines
import pytest
import tiny
import torch
from linears import relative_gap

from fastvlm.backends.cpu.int4 import Int4Weight
from fastvlm.backends.cpu.int8 import Int8Weight
from fastvlm.backends.local import _linears, _rounded_linear
from fastvlm.conversion.quantize import round_linears
from fastvlm.errors import CheckpointError, ConfigError
from fastvlm.formats import quantized_file as module
from fastvlm.formats.names import HEAD
from fastvlm.formats.quantized_file import (
    QUANTIZED_FILE,
    QuantizationOptions,
    load_quantized,
    save_quantized,
)

TEXT = {"hidden_size": 64, "intermediate_size": 128}
INT8 = QuantizationOptions(8)
INT4 = QuantizationOptions(4)


@pytest.fixture(scope="module")
def model():
    return tiny.model(text=TEXT)


def quantize(model, options=INT8):
    text = model.config.text_config
    return round_linears(
        model.state_dict().__getitem__, text.num_hidden_layers, options, has_tied_head=text.tie_word_embeddings
    )


def on_rounded(model, quantized, dtype=None):
    """A decoder of `model` whose linear layers are those of `quantized`."""
    checkpoint = model.to_checkpoint(None)
    dtype = checkpoint.dtype if dtype is None else dtype
    rounded = {linear.names: linear.weight for linear in quantized.linears}
    checkpoint = dataclasses.replace(checkpoint, rounded=rounded, bits=quantized.options.bits)
    make = functools.partial(_rounded_linear, dtype=dtype, device=torch.device("cpu"))
    return engines.decoder(model, 1, 16, checkpoint=checkpoint, make_rounded=make, dtype=dtype)


def logits(decoder, ids=(5, 9, 7, 33, 21)):
    """Logits after a prompt, and after one token more."""
    first = engines.prefilled(decoder, decoder.embed(ids), 0)
    return torch.stack([first, decoder.decode([44], [0], [len(ids)])[0]])


@pytest.mark.parametrize(
    ("options", "largest_error", "largest_gap"),
    [
        (INT8, 0.01, 0.05),
        (INT4, 0.12, 0.25),
        (QuantizationOptions(4, 64), 0.12, 0.3),
        (QuantizationOptions(4, 32, 4), 0.12, 0.25),
    ],
)
def test_a_decoder_on_rounded_weights_is_near_the_plain_one(model, options, largest_error, largest_gap):
    quantized = quantize(model, options)
    assert 0 < quantized.error.mean <= quantized.error.largest < largest_error
    rounded = logits(on_rounded(model, quantized))
    assert 0 < relative_gap(rounded, logits(engines.decoder(model, 1, 16))) < largest_gap


def test_options_say_which_layers_get_which_bits(model):
    kinds = {options: [type(w) for w in quantize(model, options).weights] for options in (INT8, INT4)}
    assert set(kinds[INT8]) == {Int8Weight}
    assert set(kinds[INT4][:-1]) == {Int4Weight} and kinds[INT4][-1] is Int8Weight
    assert set(map(type, quantize(model, QuantizationOptions(4, 32, 4)).weights)) == {Int4Weight}


def test_inputs_that_fill_no_group_get_8_bits():
    quantized = quantize(tiny.model(), INT4)  # the FFN is 48 wide
    assert {type(weight) for weight in quantized.weights} == {Int4Weight, Int8Weight}
    assert logits(on_rounded(tiny.model(), quantized)).isfinite().all()


def test_memory_is_counted(model):
    given = []
    engines.decoder(model, 1, 8, engines.maker(lambda weight, bias: given.append(weight.numel()) or (lambda x: x)))
    assert sum(given) <= quantize(model).num_bytes <= 1.1 * sum(given)
    assert quantize(model, QuantizationOptions(4, 64, 4)).num_bytes < 0.75 * sum(given)


@pytest.mark.parametrize("options", [INT8, INT4])
def test_a_file_gives_back_what_was_saved(model, options, tmp_path):
    quantized = quantize(model, options)
    save_quantized(quantized, tmp_path / QUANTIZED_FILE)
    loaded = load_quantized(tmp_path / QUANTIZED_FILE)
    assert (loaded.options, loaded.error) == (quantized.options, quantized.error)
    assert (loaded.dtype, loaded.shapes, loaded.digest) == (quantized.dtype, quantized.shapes, quantized.digest)
    for ours, theirs in zip(quantized.weights, loaded.weights, strict=True):
        for field in dataclasses.fields(ours):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    expected = logits(on_rounded(model, quantized))
    assert torch.equal(logits(on_rounded(model, loaded)), expected)


def test_stored_is_what_rounding_at_load_gives(model):
    for options in (INT8, INT4):
        stored = logits(on_rounded(model, quantize(model, options)))
        make = _linears(options.bits, torch.float32)
        assert torch.equal(stored, logits(engines.decoder(model, 1, 16, make)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_the_file_is_mapped_not_read(model, tmp_path):
    file = tmp_path / QUANTIZED_FILE
    save_quantized(quantize(model, INT4), file)
    loaded = load_quantized(file)
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in lines]
    for weight in loaded.weights:
        tensor = weight.packed if isinstance(weight, Int4Weight) else weight.values
        assert any(start <= tensor.data_ptr() < end for start, end in ranges)


@pytest.mark.parametrize("is_tied", [False, True])
def test_products_are_those_that_the_decoder_asks_for(is_tied):
    """Also for a head that is the embedding table; every weight by its own name, rounded."""
    model = tiny.model(text={**TEXT, "tie_word_embeddings": is_tied})
    quantized, asked = quantize(model), []
    engines.decoder(model, 1, 8, engines.maker(lambda weight, bias: asked.append(weight.clone()) or (lambda x: x)))
    head, *layers = asked
    for weight, rounded in zip([*layers, head], quantized.weights, strict=True):
        assert relative_gap(rounded.dequantize(), weight) < 0.02
    state = model.state_dict()
    assert (HEAD in quantized.shapes) is not is_tied
    for name, shape in quantized.shapes.items():
        assert shape == state[name].shape and relative_gap(quantized.tensor(name), state[name]) < 0.02


def test_another_models_weights_are_refused(model):
    with pytest.raises(CheckpointError, match="another model or version"):
        on_rounded(tiny.model(), quantize(model))


@pytest.mark.parametrize("bad", [{"bits": 2}, {"head_bits": 16}, {"group_size": 48}])
def test_other_numbers_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        QuantizationOptions(**bad)


def test_what_is_no_such_file_is_an_error_that_says_so(model, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_quantized(tmp_path / "missing.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a safetensors file at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_quantized(garbage)
    plain = tmp_path / "plain.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    plain.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="reads '3' and '4'"):
        load_quantized(plain)


def test_a_file_of_another_version_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FORMATS", "00")
    save_quantized(quantize(model), tmp_path / QUANTIZED_FILE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="'0'"):
        load_quantized(tmp_path / QUANTIZED_FILE)
