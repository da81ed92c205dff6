"""``fastvlm quantize --format compressed-tensors``: packed as that package packs, opened by us and by transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import fastvlm
from fastvlm.conversion.quantize import quantize
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.compressed_tensors import CompressedOptions, pack, packed_parts, unpack
from fastvlm.formats.rounding import quantize_int4_symmetric, quantize_int8
from fastvlm.opening import open_checkpoint

STAR = Path(__file__).parents[2] / "examples" / "red_star.png"
NAME = "model.language_model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module", params=[8, 4])
def folder(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("compressed") / str(request.param)
    report = quantize("mini", target, CompressedOptions(request.param, 64))
    assert 0 < report.error.mean < (0.02 if request.param == 8 else 0.15)
    return target


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_packing_is_undone(rows, columns, bits, seed):
    values = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack(values, bits)
    assert packed.dtype == torch.int32 and packed.shape == (rows, -(-columns * bits // 32))
    assert unpack(packed, bits, columns).equal(values.to(torch.uint8))


@pytest.mark.parametrize("bits", [8, 4])
def test_parts_are_those_of_the_package(bits):
    package = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", exc_type=ImportError)
    weight = torch.randn(70, 128)
    rounded = quantize_int8(weight) if bits == 8 else quantize_int4_symmetric(weight, 64)
    parts = packed_parts(rounded, torch.float32)
    signed = rounded.values if bits == 8 else (rounded.values().int() - 8).to(torch.int8)
    assert parts["weight_packed"].equal(package.pack_to_int32(signed, bits))
    exact = signed.reshape(70, parts["weight_scale"].shape[1], -1) * parts["weight_scale"][..., None]
    torch.testing.assert_close(exact.reshape(70, 128), rounded.dequantize().float(), rtol=0.01, atol=1e-6)


def test_we_open_it_with_its_rounded_weights(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.bits == int(folder.name) and len(checkpoint.rounded) == 24
    model, _ = fastvlm.load(folder, device="cpu", dtype="float32")
    weight = model.get_submodule(NAME).weight
    torch.testing.assert_close(weight, checkpoint.tensors[f"{NAME}.weight"].float())
    with fastvlm.FastVLM(str(folder), dtype="float32") as opened:
        assert opened.ask(str(STAR), "What shape is it?") == "It is a star."


def test_transformers_computes_the_same(folder):
    pytest.importorskip("compressed_tensors")
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration as Theirs

    theirs = Theirs.from_pretrained(folder, dtype=torch.float32).eval()
    ours, processor = fastvlm.load(folder, device="cpu", dtype="float32")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What shape is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=str(STAR), text=text, return_tensors="pt")
    with torch.no_grad():
        replies = [model.generate(**inputs, max_new_tokens=16, do_sample=False) for model in (theirs, ours)]
    assert replies[0].equal(replies[1])


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_damaged_part_is_one_error(folder, tmp_path, part):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    broken = tensors[f"{NAME}.{part}"]
    tensors[f"{NAME}.{part}"] = -broken if part == "weight_scale" else broken[:-1].contiguous()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(copy)


def test_rounding_twice_and_groups_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="weights already"):
        quantize(folder, tmp_path / "x", CompressedOptions(8))
    with pytest.raises(UsageError, match="expected 32 or 64"):
        quantize("mini", tmp_path / "x", CompressedOptions(4, 128))
    assert not (tmp_path / "x").exists()


def test_the_configuration_says_what_is_packed(folder):
    stored = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "compressed-tensors" and "lm_head" in stored["ignore"]
    assert stored["config_groups"]["group_0"]["weights"]["num_bits"] == int(folder.name)
