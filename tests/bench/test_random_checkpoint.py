"""Random checkpoints: whole, repeatable, refused where they do not belong; a tokenizer of the published size."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import fastvlm
from fastvlm.bench import random_checkpoint as made
from fastvlm.bench.random_checkpoint import PRESETS, checkpoint_bytes, make_checkpoint, number_tokens, padded_tokenizer
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.places import checkpoint_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint("mini", tmp_path_factory.mktemp("random") / "deep" / "mini")


@pytest.fixture(scope="module")
def opened(folder):
    return fastvlm.load(folder, device="cpu")


def test_it_opens_and_answers_with_visible_text_that_does_not_end(opened):
    model, processor = opened
    assert model.dtype == torch.bfloat16 and processor.image_processor.image_size == (512, 512)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    messages = [{"role": "user", "content": [{"type": "image", "image": image[0]}, {"type": "text", "text": "Hi"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
    assert len(output) == 24 and not set(output.tolist()) & set(model.config.stop_token_ids)
    assert all(processor.decode([token]).strip() for token in output[:3].tolist())


@torch.no_grad()
def test_numbers_stay_in_range(opened):
    model, _ = opened
    ids = torch.arange(40)[None]
    output = model(input_ids=ids, output_hidden_states=True)
    assert all(bool(hidden.isfinite().all()) for hidden in output.hidden_states)
    assert 0.1 < float(output.logits.float().std()) < 10
    features = model.get_image_features(torch.rand(1, 3, 256, 256)).pooler_output.float()
    assert bool(features.isfinite().all()) and 1e-3 < float(features.std()) < 10


def test_it_is_the_same_each_time_and_left_alone_where_it_is(folder, tmp_path):
    again = make_checkpoint("mini", tmp_path / "again")
    files = sorted(file.name for file in folder.iterdir())
    assert files == sorted(file.name for file in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in files)
    moments = {file.name: file.stat().st_mtime_ns for file in again.iterdir()}
    assert make_checkpoint("mini", again) == again
    assert {file.name: file.stat().st_mtime_ns for file in again.iterdir()} == moments


def test_the_size_is_told_beforehand(folder):
    told, seen = checkpoint_bytes("mini"), []
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert told == pytest.approx(weights, rel=0.01)
    make_checkpoint("mini", folder, seen.append)
    assert seen == []
    assert checkpoint_bytes("0.5b") == pytest.approx(1.24e9, rel=0.01)
    assert checkpoint_bytes("1.5b") == pytest.approx(3.35e9, rel=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_help_page_tells_these_sizes(preset):
    from fastvlm.cli.bench import bench
    from fastvlm.cli.terminal import in_bytes

    assert f"{preset}: {in_bytes(checkpoint_bytes(preset))}" in " ".join((bench.__doc__ or "").split())


def test_another_checkpoint_in_the_folder_is_refused(endless, tmp_path):
    with pytest.raises(CheckpointError, match="not of the preset 'mini'"):
        make_checkpoint("mini", endless)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError):
        make_checkpoint("mini", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(made.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(CheckpointError, match=r"takes 1\.2 GB.*has 1\.0 GB free"):
        make_checkpoint("0.5b", tmp_path / "large")
    assert list(tmp_path.iterdir()) == []


def test_what_is_broken_off_leaves_nothing(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint("mini", tmp_path / "half", stop)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"'8b'.*0\.5b, 1\.5b, 7b, mini"):
        make_checkpoint("8b", tmp_path / "x")


def test_the_padded_tokenizer_has_the_published_ids_and_cuts_text_as_before():
    shipped = Tokenizer.from_file(str(checkpoint_path("mini") / "tokenizer.json"))
    padded = Tokenizer.from_str(json.dumps(padded_tokenizer(json.loads(shipped.to_str()), 151_643)))
    assert padded.get_vocab_size(with_added_tokens=False) == 151_643
    ids = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<image>": 151_646}
    assert {token: padded.token_to_id(token) for token in ids} == ids
    for text in ("How many red circles? 1234567 or 00?", "naïve 你好 🙂", "  x\n\n99 "):
        assert padded.encode(text).tokens == shipped.encode(text).tokens
        assert padded.decode(padded.encode(text).ids) == text
    for index in (5000, 20_000, 151_642):
        assert padded.decode([index]).isdigit()
    model = json.loads(padded.to_str())["model"]
    assert len(model["merges"]) == 151_643 - 256  # as published: a merge for all but the bytes


@pytest.mark.slow
def test_a_published_size_is_written_with_its_whole_tokenizer(tmp_path, monkeypatch):
    """The 0.5B's vocabulary and ids over narrow layers: the whole one is too large for a test."""
    content = fastvlm.FastVlmConfig.preset("0.5b").to_dict()
    text = {**content["text_config"], "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    vision = {"model_args": {"layers": [1] * 5, "embed_dims": [8, 8, 16, 32, 32]}}
    narrow = fastvlm.FastVlmConfig(text_config=text, vision_config=vision, dtype="bfloat16")
    monkeypatch.setattr(made, "_config", lambda _: narrow)
    model, processor = fastvlm.load(make_checkpoint("0.5b", tmp_path / "narrow"), device="cpu")
    assert len(processor.tokenizer) == 151_647 and model.get_input_embeddings().num_embeddings == 152_000
    assert processor.image_processor.image_size == (1024, 1024)
    assert model.generation_config.eos_token_id == [151_645, 151_643]
    ids = processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    assert ids == [151_643, 151_644, 151_645, 151_646] and model.config.image_token_index == 151_646
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], tokenize=True, return_tensors="pt"
    )
    prompt = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    reply = model.generate(input_ids=prompt, max_new_tokens=8)[0, prompt.shape[1] :]
    assert len(reply) == 8 and processor.decode(reply).strip()


def test_a_tokenizer_that_is_too_large_is_refused():
    content = json.loads(Path(checkpoint_path("mini") / "tokenizer.json").read_text())
    with pytest.raises(UsageError, match="4092 base tokens; 100"):
        padded_tokenizer(content, 100)


def test_numbers_are_never_given_twice():
    numbers = [number for number, _ in zip(number_tokens(), range(12_000), strict=False)]
    assert len(set(numbers)) == len(numbers) and numbers[:2] == ["00", "01"] and numbers[100] == "000"
