"""Adapters: they learn, nothing else does, and what is saved gives the same answers when it is opened or merged."""

import json
import os
import shutil
import signal

import pytest
import small_run
import torch

import fastvlm
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.hf.lora import merge_adapter
from fastvlm.training.recipe import LoraEntry
from fastvlm.training.run.model_setup import set_up_model
from fastvlm.training.run.training_run import TrainingRun

# transformers 5.23 renames gradient to activation checkpointing; peft asks by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
PARTS = {"encoder": "frozen", "projector": "frozen", "decoder": 2e-2}


def lora_recipe(model, data, **changes):
    return small_run.recipe(model, data, **{"parts": PARTS, "lora": LORA, "max_steps": 2, **changes})


def logits(model, processor):
    text = "<|im_start|>user\n<image>\nWhat is shown?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=torch.ones(3, 90, 60), text=text, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits


def opened(folder):
    return fastvlm.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def merged_run(small_model, small_data, tmp_path_factory):
    """Adapters, and the whole model with them added in."""
    recipe = lora_recipe(small_model, small_data, lora={**LORA, "merge": True})
    return TrainingRun(recipe, tmp_path_factory.mktemp("adapters") / "run").train()


def test_an_adapter_opens_and_is_what_merge_writes(small_model, merged_run):
    outcome = merged_run
    base, processor = opened(small_model)
    before = logits(base, processor)
    merged, _ = opened(outcome.model)
    after = logits(merged, processor)
    assert (after - before).abs().max() > 1e-3
    again = merge_adapter(base, outcome.adapter)
    assert type(again) is type(merged)
    torch.testing.assert_close(logits(again, processor), after, atol=1e-5, rtol=1e-5)
    config = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(small_model) and config["r"] == 4
    assert "--adapter" in (outcome.adapter / "README.md").read_text()


def test_only_adapters_and_whole_parts_learn(small_model, small_data):
    start = set_up_model(lora_recipe(small_model, small_data, parts={**PARTS, "projector": 1e-2}))
    learning = {name for name, p in start.model.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name or "multi_modal_projector.modules_to_save" in name for name in learning)


def test_a_whole_projector_and_encoder_come_along_with_the_statistics(small_model, small_data, tmp_path):
    parts = {**PARTS, "projector": 1e-2, "encoder": {"lr": 1e-2, "batchnorm": "train"}}
    outcome = TrainingRun(lora_recipe(small_model, small_data, parts=parts), tmp_path / "run").train()
    base, _ = opened(small_model)
    merged, untouched = merge_adapter(base, outcome.adapter), opened(small_model)[0].state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in base.state_dict().items())
    moved = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, untouched[name])}
    assert any("running_mean" in name for name in moved) and any("mlp.fc1" in name for name in moved)
    assert "model.multi_modal_projector.linear_1.weight" in moved


@pytest.mark.parametrize("part", ["encoder", "projector", "decoder"])
def test_adapters_go_to_the_part_that_is_named(part, small_model, small_data):
    parts = {"encoder": "frozen", "projector": "frozen", "decoder": "frozen", part: 1e-3}
    start = set_up_model(lora_recipe(small_model, small_data, parts=parts, lora={**LORA, "parts": [part]}))
    mark = {"encoder": "vision_tower", "projector": "multi_modal_projector", "decoder": "language_model"}[part]
    names = {name.rsplit(".lora_", 1)[0] for name, p in start.model.named_parameters() if p.requires_grad}
    assert names and all(mark in name for name in names)
    if part == "encoder":
        assert {name.rsplit(".", 1)[-1] for name in names} == {"qkv", "proj", "fc1", "fc2"}
        assert not any(".se." in name or "downsample" in name for name in names)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_base_learns_and_its_adapter_fits_the_plain_one(bits, small_model, small_data, tmp_path):
    recipe = lora_recipe(small_model, small_data, base_bits=bits, max_steps=6)
    start = set_up_model(recipe)
    layer = start.plain.model.language_model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype in (torch.int8, torch.uint8) and not layer.weight.requires_grad
    outcome = TrainingRun(recipe, tmp_path / "run").train()
    losses = [line["loss"] for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())]
    assert losses[-1] < losses[0]
    base, processor = opened(small_model)
    before = logits(base, processor)
    assert (logits(merge_adapter(base, outcome.adapter), processor) - before).abs().max() > 1e-3


def test_adapters_go_on_to_the_last_bit(small_model, small_data, tmp_path):
    recipe = lora_recipe(small_model, small_data, lora={**LORA, "dropout": 0.2})
    straight = TrainingRun(recipe, tmp_path / "straight").train()

    def stop(progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert TrainingRun(recipe, tmp_path / "run", on_progress=stop).train().step == 1
    gone_on = TrainingRun(recipe, tmp_path / "run").train(is_resumed=True)
    name = "adapter_model.safetensors"
    assert (gone_on.adapter / name).read_bytes() == (straight.adapter / name).read_bytes()


def another_base(small_model, folder):
    """A folder of the same name with the same sizes and other weights."""
    model, processor = opened(small_model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.add_(0.1)
    model.save_pretrained(folder / small_model.name)
    processor.save_pretrained(folder / small_model.name)
    return folder / small_model.name


def test_an_adapter_knows_the_weights_that_it_was_made_for(small_model, merged_run, tmp_path):
    outcome = merged_run
    other, _ = opened(another_base(small_model, tmp_path))
    with pytest.raises(CheckpointError, match="was made for other weights"):
        merge_adapter(other, outcome.adapter)
    renamed = shutil.copytree(small_model, tmp_path / "renamed")
    for dtype in ("float32", "bfloat16", "float16"):
        merge_adapter(fastvlm.load(renamed, device="cpu", dtype=dtype)[0], outcome.adapter)


def test_adapters_do_not_go_on_beside_other_weights(small_model, small_data, tmp_path):
    base = shutil.copytree(small_model, tmp_path / "base")
    recipe = lora_recipe(base, small_data, max_steps=2)
    TrainingRun(recipe, tmp_path / "run").train()
    changed = another_base(small_model, tmp_path / "new")
    shutil.rmtree(base)
    shutil.copytree(changed, base)
    with pytest.raises(UsageError, match=r"was started from other weights .* base_digest\.json does not match"):
        TrainingRun(recipe, tmp_path / "run").train(is_resumed=True)


def test_what_is_no_adapter_is_refused(small_model, merged_run, tmp_path):
    base, _ = opened(small_model)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        merge_adapter(base, tmp_path)
    mini, _ = fastvlm.load("mini", device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match="was made for"):
        merge_adapter(mini, merged_run.adapter)


def test_the_numbers_are_apple_s():
    assert LoraEntry() == LoraEntry(r=64, alpha=16, dropout=0.05)
