"""`fastvlm.convert`: both ways, nothing lost, nothing left behind, little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import apple_layout
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import fastvlm
from fastvlm import FastVlmForConditionalGeneration, FastVlmImageProcessor, FastVlmProcessor
from fastvlm.conversion.apple_extras import AppleExtras
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.folder import inspect_folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


def as_bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def assert_bit_equal(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].dtype == two[key].dtype
        assert torch.equal(as_bytes(one[key]), as_bytes(two[key])), key


def save_ours(folder, model):
    model.save_pretrained(folder)
    tokenizer = apple_layout.qwen2_format.small_tokenizer()
    FastVlmProcessor(FastVlmImageProcessor(image_size=128), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def model():
    return apple_layout.tokenized_model()


@pytest.fixture
def apple(tmp_path, model):
    return apple_layout.write_apple_folder(tmp_path / "apple", model, dtype=torch.bfloat16)


def drop_head(tensors):
    del tensors["lm_head.weight"]


def drop_clip_head(tensors):
    del tensors[apple_layout.HEAD_PROJ]


@pytest.mark.parametrize(
    ("is_tied", "form", "edit"),
    [
        (True, True, lambda _: None),
        (True, True, drop_head),
        (True, False, drop_clip_head),
        (False, True, lambda _: None),
        (False, False, drop_clip_head),
    ],
)
def test_apple_to_ours_to_apple_is_bit_equal(tmp_path, edit, is_tied, form):
    model = apple_layout.tokenized_model(text={"tie_word_embeddings": is_tied}, vision={"inference_mode": form})
    apple = apple_layout.write_apple_folder(tmp_path / "apple", model, edit=edit, dtype=torch.bfloat16)
    fastvlm.convert(apple, tmp_path / "ours", max_shard_size="100KB")
    fastvlm.convert(tmp_path / "ours", tmp_path / "back", to="llava_qwen2", max_shard_size="200KB")
    assert_bit_equal(tensors_of(tmp_path / "back"), tensors_of(apple))
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (apple, tmp_path / "back"))
    assert now == {**was, "torch_dtype": "bfloat16"}


@pytest.mark.parametrize("more_rows", [0, 1, 100])
def test_vocabularies_come_back_with_the_rows_they_had(tmp_path, more_rows):
    placeholder = len(apple_layout.qwen2_format.small_tokenizer(with_image=False))
    model = apple_layout.qwen2_sized_model({"vocab_size": placeholder + more_rows})
    apple = apple_layout.write_apple_folder(tmp_path / "apple", model, image_token_index=placeholder)
    report = fastvlm.convert(apple, tmp_path / "ours")
    assert report.added_rows == (-placeholder % 64 if more_rows == 0 else 0)
    table = tensors_of(tmp_path / "ours")["model.language_model.embed_tokens.weight"]
    assert len(table) == placeholder + more_rows + report.added_rows
    fastvlm.convert(tmp_path / "ours", tmp_path / "back", to="llava_qwen2")
    assert_bit_equal(tensors_of(tmp_path / "back"), tensors_of(apple))


@pytest.mark.parametrize("to", ["fast_vlm", "llava_qwen2"])
def test_converting_twice_equals_once(tmp_path, apple, to):
    fastvlm.convert(apple, tmp_path / "once", to=to, max_shard_size="100KB")
    fastvlm.convert(tmp_path / "once", tmp_path / "twice", to=to, max_shard_size="100KB")
    assert apple_layout.digest(tmp_path / "once") == apple_layout.digest(tmp_path / "twice")


def test_ours_to_apple_to_ours_keeps_every_tensor(tmp_path, model):
    ours = save_ours(tmp_path / "ours", model)
    fastvlm.convert(ours, tmp_path / "apple", to="llava_qwen2")
    fastvlm.convert(tmp_path / "apple", tmp_path / "back")
    assert_bit_equal(tensors_of(tmp_path / "back"), tensors_of(ours))
    opened, processor = fastvlm.load(tmp_path / "back")
    for key in ("vocab_size", "hidden_size", "rope_parameters", "tie_word_embeddings", "eos_token_id", "pad_token_id"):
        assert getattr(opened.config.text_config, key) == getattr(model.config.text_config, key)
    assert processor.image_processor.image_size == (128, 128)


def test_every_way_computes_the_same_in_fastvlm_and_in_transformers(tmp_path, model):
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration as Theirs

    apple = apple_layout.write_apple_folder(tmp_path / "apple", model)
    fastvlm.convert(apple, tmp_path / "ours", max_shard_size="100KB")
    theirs, info = Theirs.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = apple_layout.inputs_for(model)
    with torch.no_grad():
        expected = FastVlmForConditionalGeneration.from_pretrained(apple)(**inputs).logits
        ours = fastvlm.load(tmp_path / "ours", device="cpu")[0](**inputs).logits
        # not bit-equal: weights lie at another address, and products may add in another order
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs(**inputs).logits, expected, rtol=0, atol=1e-4)


def test_auto_class_of_transformers_opens_what_is_written(tmp_path, apple):
    fastvlm.convert(apple, tmp_path / "ours")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(model).__module__ == "transformers.models.fast_vlm.modeling_fast_vlm"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generation_config.do_sample is False


def test_what_is_written_beside_the_weights(tmp_path, apple):
    (apple / "LICENSE_MODEL").write_text("for research only")
    (apple / "notes.md").write_text("not carried")
    report = fastvlm.convert(apple, tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "LICENSE_MODEL",
        "SHA256SUMS",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "llava_qwen2",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (report.source, report.to, report.files) == ("llava_qwen2", "fast_vlm", ("model.safetensors",))
    assert report.dropped == (apple_layout.HEAD_PROJ,)
    assert report.num_tensors == len(tensors_of(tmp_path / "ours"))
    assert report.num_bytes == sum(t.numel() * t.element_size() for t in tensors_of(tmp_path / "ours").values())
    generation = json.loads((tmp_path / "ours/generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert generation["eos_token_id"]


def test_a_multi_branch_encoder_is_fused_on_request(tmp_path):
    model = apple_layout.tokenized_model(vision={"inference_mode": False})
    ours = save_ours(tmp_path / "ours", model)
    fastvlm.convert(ours, tmp_path / "fused", fuse=True)
    fused, _ = fastvlm.load(tmp_path / "fused", device="cpu")
    assert fused.config.vision_config.is_inference_form
    assert fused.model.vision_tower.timm_model.is_fused
    inputs = apple_layout.inputs_for(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-4)
    fastvlm.convert(ours, tmp_path / "kept")
    assert not fastvlm.load(tmp_path / "kept", device="cpu")[0].config.vision_config.is_inference_form


def test_dtype_is_changed_on_request_and_only_of_floating_tensors(tmp_path, apple):
    fastvlm.convert(apple, tmp_path / "ours", dtype="float32")
    assert {t.dtype for t in tensors_of(tmp_path / "ours").values()} == {torch.float32, torch.int64}
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == "float32"
    fastvlm.convert(tmp_path / "ours", tmp_path / "half", to="llava_qwen2", dtype=torch.bfloat16)
    assert_bit_equal(tensors_of(tmp_path / "half"), tensors_of(apple))


def test_step_counters_that_lack_are_written(tmp_path, model):
    def drop(tensors):
        for key in [key for key in tensors if key.endswith("num_batches_tracked")]:
            del tensors[key]

    apple = apple_layout.write_apple_folder(tmp_path / "apple", model, edit=drop)
    fastvlm.convert(apple, tmp_path / "ours")
    assert set(tensors_of(tmp_path / "ours")) == set(model.state_dict())


def test_progress_is_told_to_the_last_byte(tmp_path, apple):
    seen = []
    report = fastvlm.convert(apple, tmp_path / "ours", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.num_bytes, report.num_bytes)
    assert len(seen) == report.num_tensors


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("when", [1, 50])
def test_nothing_is_left_behind_when_it_is_stopped(tmp_path, apple, failure, when):
    calls = 0

    def progress(done, total):
        nonlocal calls
        calls += 1
        if calls == when:
            raise failure

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(failure):
        fastvlm.convert(apple, tmp_path / "ours", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_target_that_exists_is_not_touched(tmp_path, apple):
    for name, make in (("folder", Path.mkdir), ("file", Path.touch), ("link", lambda p: p.symlink_to("nowhere"))):
        make(tmp_path / name)
        with pytest.raises(UsageError, match="exists already"):
            fastvlm.convert(apple, tmp_path / name)
    with pytest.raises(UsageError, match="is not a folder"):
        fastvlm.convert(apple, tmp_path / "no" / "such")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"to": "gguf"}, UsageError, "the layouts are fast_vlm, llava_qwen2"),
        ({"dtype": "int4"}, UsageError, "dtype is 'int4'"),
        ({"max_shard_size": "many"}, UsageError, "max_shard_size is 'many'"),
        ({"max_shard_size": 0}, UsageError, "max_shard_size is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_first(tmp_path, apple, settings, error, message):
    with pytest.raises(error, match=message):
        fastvlm.convert(apple, tmp_path / "ours", **settings)
    assert not (tmp_path / "ours").exists()


def test_broken_sources_write_nothing(tmp_path, apple):
    (apple / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer"):
        fastvlm.convert(apple, tmp_path / "ours")
    (apple / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        fastvlm.convert(apple, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["apple"]


def test_an_encoder_that_apples_layout_cannot_describe_is_refused(tmp_path):
    model = apple_layout.tokenized_model(vision={"lkc_use_act": False})
    with pytest.raises(CheckpointError, match="lkc_use_act"):
        fastvlm.convert(save_ours(tmp_path / "ours", model), tmp_path / "apple", to="llava_qwen2")
    assert not (tmp_path / "apple").exists()


def test_the_extras_say_what_apple_had(tmp_path, apple):
    fastvlm.convert(apple, tmp_path / "ours")
    extras = AppleExtras.of(inspect_folder(tmp_path / "ours"))
    assert extras is not None
    assert extras.has_head
    assert [tensor.name for tensor in extras.tensors] == [apple_layout.HEAD_PROJ]
    save_ours(tmp_path / "plain", apple_layout.tokenized_model())
    assert AppleExtras.of(inspect_folder(tmp_path / "plain")) is None


PEAK = """
import os, sys, threading
import fastvlm, fastvlm.conversion.convert
def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))
base, peak = anonymous(), 0
def progress(done, total):
    global peak
    peak = max(peak, anonymous() - base)
report = fastvlm.convert(sys.argv[1], sys.argv[2], max_shard_size="16MB", progress=progress)
print(len(report.files), report.num_bytes, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc to measure memory")
def test_memory_is_that_of_a_shard_not_of_the_checkpoint(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 8}
    model = apple_layout.tokenized_model(text=sizes)
    apple = apple_layout.write_apple_folder(tmp_path / "apple", model)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(apple), str(tmp_path / "ours")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    num_files, num_bytes, peak = (int(word) for word in done.stdout.split())
    assert num_files > 8
    assert num_bytes > 150e6
    assert peak < 64e6  # of 150 MB; a shard is 16 MB, the largest tensor 8 MB
