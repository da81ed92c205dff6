"""`fastvlm info`: numbers that are checked against the models themselves."""

import json

import pytest
import torch

import fastvlm as package
from fastvlm.cli.checkpoint_facts import Parameters, count_parameters, license_note, read_facts
from fastvlm.hf.cache_name import CACHE_NAME
from fastvlm.hf.config import PRESETS


def test_facts_are_those_of_the_open_model(fastvlm, parrot_folder):
    facts = json.loads(fastvlm("info", parrot_folder, "--json").out)
    model, processor = package.load(parrot_folder)
    parts = {
        "encoder": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "embeddings": model.get_input_embeddings(),
        "head": model.lm_head,
    }
    for part, module in parts.items():
        assert facts["parameters"][part] == sum(p.numel() for p in module.parameters()), part
    assert facts["parameters"]["total"] == model.num_parameters()
    assert facts["weight_bytes"]["float32"] == 4 * model.num_parameters()
    assert facts["vocabulary_rows"] == model.get_input_embeddings().num_embeddings
    assert facts["context_tokens"] == model.config.text_config.max_position_embeddings
    size = processor.image_processor.image_size
    assert (facts["images"]["height_px"], facts["images"]["width_px"]) == size
    assert facts["images"]["visual_tokens"] == model.config.num_visual_tokens(*size)
    assert facts["file_bytes"] == (parrot_folder / "model.safetensors").stat().st_size
    assert (facts["layout"], facts["encoder_form"], facts["dtype"]) == ("fast_vlm", "fused", "float32")
    assert facts["is_head_tied"] is False and facts["size"] is None


def test_kv_bytes_are_those_of_the_cache(parrot_folder):
    model, _ = package.load(parrot_folder)
    tokens = 7
    cache = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True)[CACHE_NAME]
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert read_facts(parrot_folder).kv_bytes_per_token["float32"] == stored / tokens


@pytest.mark.parametrize(
    ("preset", "encoder", "projector", "decoder"),
    [
        ("0.5b", 122_714_208, 3_557_120, 357_898_112),
        ("1.5b", 122_714_208, 7_080_960, 1_310_340_608),
        ("7b", 122_714_208, 23_862_272, 6_525_621_760),
    ],
)
def test_published_sizes_by_part(preset, encoder, projector, decoder):
    config = package.FastVlmConfig.preset(preset)
    with torch.device("meta"):
        model = package.FastVlmForConditionalGeneration(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    counts = count_parameters(shapes)
    text = config.text_config
    table = text.vocab_size * text.hidden_size
    assert (counts.encoder, counts.projector, counts.decoder) == (encoder, projector, decoder)
    assert (counts.embeddings, counts.head) == (table, 0 if config.tie_word_embeddings else table)


def test_int8_halves_the_decoder_only():
    counts = Parameters(encoder=100, projector=10, embeddings=1000, decoder=5000, head=0)
    assert counts.weight_bytes() == {"float32": 24440, "bfloat16": 12220, "int8": 6000 + 220}


def test_the_page_for_people(fastvlm, parrot_folder):
    outcome = fastvlm("info", parrot_folder)
    assert outcome.code == 0 and outcome.err == ""
    for words in (
        "fast_vlm, float32",
        "FastViTHD, fused",
        "128 x 128 px (pad): 4 tokens each",
        "license",
        "apart from",
    ):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 120 or str(parrot_folder) in outcome.out


@pytest.mark.parametrize("size", sorted(set(PRESETS) - {"mini"}))
def test_apples_sizes_carry_apples_licence(tmp_path, size):
    assert "research only" in license_note(tmp_path, size) and "AMLR" in license_note(tmp_path, size)


def test_a_licence_file_is_named(tmp_path):
    assert "No license is stated" in license_note(tmp_path, None)
    (tmp_path / "LICENSE").write_text("\n  Apache License 2.0\nmore\n")
    assert license_note(tmp_path, "mini") == "Apache License 2.0 (see LICENSE in the folder)."
    assert "research only" in license_note(tmp_path, "7b") and "Apache" in license_note(tmp_path, "7b")


def test_no_tensor_is_loaded_and_nothing_is_written(fastvlm, parrot_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr("fastvlm.formats.weights.safe_open", refuse)
    before = {file.name: file.read_bytes() for file in parrot_folder.iterdir()}
    assert fastvlm("info", parrot_folder).code == 0
    assert {file.name: file.read_bytes() for file in parrot_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "words"), [("{", "config.json"), ('{"model_type": "llava"}', "model_type 'llava'")]
)
def test_broken_checkpoints_are_one_line(fastvlm, tmp_path, content, words):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    outcome = fastvlm("info", folder)
    assert outcome.code == 1 and words in outcome.error


def test_of_the_shipped_checkpoint_it_says_what_it_was_trained_on(fastvlm, parrot_folder):
    words = " ".join(fastvlm("info", "mini").out.split())
    assert "trained from scratch on drawings only" in words and "-m apple/FastVLM-0.5B" in words
    assert "one short English question about one image" in json.loads(fastvlm("info", "--json").out)["about"]
    assert json.loads(fastvlm("info", parrot_folder, "--json").out)["about"] is None
    assert "\nabout" not in fastvlm("info", parrot_folder).out


def test_verify_says_what_each_file_is(fastvlm, parrot_folder, tmp_path):
    package.convert(parrot_folder, tmp_path / "made")
    outcome = fastvlm("info", tmp_path / "made", "--verify")
    assert outcome.code == 0 and outcome.err == ""
    assert all(line.startswith("good ") for line in outcome.out.splitlines()) and "model.safetensors" in outcome.out
    (tmp_path / "made" / "tokenizer.json").write_text("{}")
    (tmp_path / "made" / "config.json").unlink()
    (tmp_path / "made" / "more.json").write_text("{}")
    outcome = fastvlm("info", tmp_path / "made", "--verify")
    assert outcome.code == 1 and outcome.err == ""
    lines = {name: state for state, name in (line.rsplit(maxsplit=1) for line in outcome.out.splitlines())}
    assert lines["tokenizer.json"] == "changed" and lines["config.json"] == "missing"
    assert lines["more.json"] == "not listed" and lines["model.safetensors"] == "good"
    outcome = fastvlm("info", tmp_path / "made", "--verify", "--json")
    said = json.loads(outcome.out)
    assert outcome.code == 1 and said["is_good"] is False
    assert {"name": "more.json", "state": "not_listed"} in said["files"]


def test_verify_without_checksums_is_an_error(fastvlm, parrot_folder):
    outcome = fastvlm("info", parrot_folder, "--verify")
    assert outcome.code == 1 and "has no SHA256SUMS" in outcome.error
