"""The configurations: numbers, round trips, what hangs on a width, and an error for everything impossible."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, Qwen2Config

from fastvlm import FastViTHD, FastViTHDConfig, FastVlmConfig, FastVlmForConditionalGeneration, num_visual_tokens
from fastvlm.encoder_config import PUBLISHED_MODEL_ARGS
from fastvlm.errors import ConfigError
from fastvlm.hf.config import PRESETS

PUBLISHED = {  # parameters of decoder body, embeddings, projector (specification of the released checkpoints)
    "0.5b": (357_898_112, 152_000 * 896, 3_557_120, 620_361_440),
    "1.5b": (1_310_340_608, 152_000 * 1536, 7_080_960, 1_673_607_776),
    "7b": (6_525_621_760, 152_128 * 3584, 23_862_272, 7_762_651_744),
}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_has_the_published_number_of_parameters(name):
    body, embeddings, projector, total = PUBLISHED[name]
    with torch.device("meta"):
        model = FastVlmForConditionalGeneration(FastVlmConfig.preset(name))
    model.tie_weights()
    assert parameters(model.model.vision_tower) == 122_714_208
    assert parameters(model.model.language_model) == body + embeddings
    assert parameters(model.model.multi_modal_projector) == projector
    assert parameters(model) == total
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is (name != "7b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_has_the_published_settings(name):
    config = FastVlmConfig.preset(name)
    text = config.text_config
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert (text.rms_norm_eps, text.max_position_embeddings, text.sliding_window) == (1e-6, 131072, None)
    assert (config.image_token_index, config.image_token_id, config.image_seq_length) == (151646, 151646, 256)
    assert text.hidden_size // text.num_attention_heads == (64 if name == "0.5b" else 128)
    assert set(config.stop_token_ids) == {151645, 151643}
    assert config.num_visual_tokens(1024, 1024) == 256


def test_default_is_the_published_7b():
    assert FastVlmConfig().to_dict() == FastVlmConfig.preset("7B").to_dict()


def test_mini_is_consistent():
    config = FastVlmConfig.preset("mini")
    assert config.num_visual_tokens(512, 512) == config.image_seq_length == 64
    assert config.image_token_index < config.text_config.vocab_size
    assert set(config.stop_token_ids) == {4094, 4092}, "Qwen2's ids are not in this vocabulary"


def test_preset_takes_overrides_and_refuses_strangers():
    assert FastVlmConfig.preset("0.5b", image_seq_length=64).image_seq_length == 64
    assert PRESETS["0.5b"].get("image_seq_length") != 64, "an override must not change the preset"
    with pytest.raises(ConfigError, match=r"no preset '3b'; known are 0\.5b, 1\.5b, 7b, mini"):
        FastVlmConfig.preset("3b")


@pytest.mark.parametrize("name", [*PRESETS, "tiny"])
def test_round_trip_through_a_folder(name, tmp_path):
    config = tiny.config(vision={"se_downsamples": [True] * 5}) if name == "tiny" else FastVlmConfig.preset(name)
    config.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    again = FastVlmConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    again.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_is_written_is_the_published_format(tmp_path):
    FastVlmConfig.preset("0.5b").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "fast_vlm"
    assert written["vision_config"]["model_type"] == "timm_wrapper"
    assert written["vision_config"]["architecture"] == "fastvit_mci3"
    assert written["vision_config"]["hidden_size"] == 3072
    assert written["vision_config"]["model_args"] == {"inference_mode": True}
    assert written["text_config"]["model_type"] == "qwen2"
    assert written["image_token_index"] == 151646


def test_image_token_id_is_another_name_for_the_index():
    config = tiny.config()
    config.image_token_id = 7
    assert config.image_token_index == 7
    assert FastVlmConfig(text_config=tiny.text_config(), image_token_id=9).image_token_index == 9


def test_tied_in_either_place_is_tied():
    for tied in (tiny.config(text={"tie_word_embeddings": True}), tiny.config(tie_word_embeddings=True)):
        assert tied.tie_word_embeddings
    assert not tiny.config().tie_word_embeddings


@pytest.mark.parametrize("text", [Qwen2Config(**{k: v for k, v in tiny.text_config().items() if k != "model_type"})])
def test_config_objects_are_taken_as_they_stand(text):
    vision = tiny.vision_config()
    config = FastVlmConfig(text_config=text, vision_config=vision, image_token_index=tiny.IMAGE_ID)
    assert config.text_config is text
    assert config.vision_config is vision


def test_a_different_decoder_can_stand_in():
    text = {"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = FastVlmConfig(
        text_config={**text, "num_attention_heads": 2}, vision_config=tiny.vision_config(), image_token_index=49
    )
    model = FastVlmForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 49, 2]])
    assert model(input_ids=ids, pixel_values=tiny.images(1, 64, 64)).logits.shape == (1, 3, 50)


# A changed width changes what hangs on it.


@settings(max_examples=12, deadline=None)
@given(factor=st.integers(1, 4), depth=st.integers(1, 2), decoder_width=st.sampled_from([16, 32, 64]))
def test_widths_flow_through(factor, depth, decoder_width):
    widths = [8 * factor, 16 * factor, 32 * factor, 64 * factor, 128 * factor]
    config = tiny.config(text={"hidden_size": decoder_width}, vision={"embed_dims": widths, "layers": [depth] * 5})
    assert config.vision_config.hidden_size == 256 * factor
    with torch.device("meta"):
        model = FastVlmForConditionalGeneration(config)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (decoder_width, 256 * factor)
    assert model.model.vision_tower.timm_model.final_conv.se.fc1.out_channels == 16 * factor
    assert [len(stage.blocks) for stage in model.model.vision_tower.timm_model.stages] == [depth] * 5


def test_changed_arguments_change_stride_and_stages():
    config = tiny.vision_config(downsamples=[False, True, True, False, False], embed_dims=[32, 64, 128, 128, 128])
    assert config.stride_px == 16
    assert num_visual_tokens(100, 64, config.stride_px) == 7 * 4


def test_a_change_of_width_by_need_brings_a_downsampling():
    # timm downsamples wherever the width changes, asked for or not.
    config = tiny.vision_config(downsamples=[False] * 5)
    assert [stage.has_downsample for stage in config.stages] == [False, True, True, True, True]


def test_arguments_may_be_keywords_tuples_or_model_args():
    by_keyword = FastViTHDConfig(
        layers=(1, 1), embed_dims=(8, 16), token_mixers=("repmixer",) * 2, pos_embs=(None,) * 2
    )
    by_args = FastViTHDConfig(
        model_args={
            "layers": [1, 1],
            "embed_dims": [8, 16],
            "token_mixers": ["repmixer", "repmixer"],
            "pos_embs": [None, None],
        }
    )
    assert by_keyword.to_dict() == by_args.to_dict()
    assert json.loads(by_keyword.to_json_string())["model_args"]["layers"] == [1, 1]


# Impossible configurations: a ConfigError that says what was got and what to do.

IMPOSSIBLE_ENCODERS = [
    ({"layer": [1]}, r"unknown key 'layer'\. Did you mean 'layers'\?"),
    ({"model_args": {"embed_dim": [8]}}, r"model_args got the unknown key 'embed_dim'\. Did you mean 'embed_dims'\?"),
    ({"colour": "red"}, r"unknown key 'colour'\. Known keys:"),
    ({"architecture": "resnet50"}, r"'resnet50'; FastVLM's encoder is 'fastvit_mci3'"),
    ({"layers": []}, r"layers has 0 stages"),
    ({"layers": [1] * 6}, r"embed_dims has 5 entries for 6 stages"),
    ({"token_mixers": ["repmixer"]}, r"token_mixers has 1 entries for 5 stages"),
    ({"layers": [-1, 1, 1, 1, 1]}, r"stage 0 of the encoder has depth -1"),
    ({"embed_dims": [0, 8, 8, 32, 32]}, r"stage 0 of the encoder has depth 2 and width 0"),
    ({"token_mixers": ["pooling"] * 5}, r"token mixer 'pooling'; known are repmixer, attention"),
    ({"embed_dims": [8, 16, 32, 48, 96]}, r"stage 3 of the encoder .*(48 wide; attention|goes from 32 to 48)"),
    ({"embed_dims": [8, 16, 32, 80, 160]}, r"stage 3 of the encoder is 80 wide; attention needs a multiple of 32"),
    ({"embed_dims": [10, 16, 32, 64, 64]}, r"stage 1 of the encoder goes from 10 to 16 channels"),
    ({"hidden_size": 1024}, r"hidden_size is 1024, but embed_dims .* give a feature map of 3072 channels"),
    ({"pos_embs": [None, None, None, 4, 7]}, r"odd kernel size or a pair of them; got 4"),
    ({"pos_embs": [None, None, None, (3, 3, 3), 7]}, r"odd kernel size"),
    ({"pos_embs": [None, None, None, "7", 7]}, r"odd kernel size"),
    ({"repmixer_kernel_size": 4}, r"repmixer_kernel_size is 4; expected an odd number"),
    ({"down_patch_size": 2}, r"down_patch_size is 2; expected an odd number"),
    ({"down_patch_size": 1}, r"down_patch_size is 1; .* from 3 to"),
    ({"mlp_ratios": [4, 4, 4, 4, 0]}, r"stage 4 of the encoder has the FFN ratio 0"),
    ({"embed_dims": [8.5, 16, 32, 64, 128]}, r"embed_dims\[0\] is 8\.5; expected int"),
    ({"layers": 5}, r"layers is 5; expected list"),
    ({"embed_dims": "wide"}, r"embed_dims is 'wide'; expected list"),
    ({"cls_ratio": 0.3}, r"cls_ratio.*0\.3"),
    ({"cls_ratio": "2"}, r"cls_ratio"),
    ({"downsamples": ["yes"] * 5}, r"downsamples\[0\] is 'yes'; expected bool"),
]


@pytest.mark.parametrize(("given_args", "said"), IMPOSSIBLE_ENCODERS, ids=lambda v: str(v)[:40])
def test_impossible_encoder_is_refused(given_args, said):
    with pytest.raises(ConfigError, match=said):
        FastViTHDConfig(**given_args)


IMPOSSIBLE_MODELS = [
    ({"image_tokens_index": 3}, r"FastVlmConfig got the unknown key 'image_tokens_index'\. Did you mean 'image_token_"),
    ({"vision_feature_layer": -2}, r"^Unexpected vision feature layer: -2\. Only -1 is supported in FastVLM\."),
    ({"vision_feature_layer": [-1]}, r"^Unexpected vision feature layer: \[-1\]\. Only -1 is supported"),
    (
        {"vision_feature_select_strategy": "default"},
        r"^Unexpected select feature strategy: default\. Only 'full' is supported in FastVLM\.",
    ),
    ({"image_token_index": 101}, r"image_token_index is 101, but the vocabulary has 101 rows"),
    ({"image_token_index": -200}, r"image_token_index is -200"),
    ({"vision_config": {"model_type": "clip_vision_model"}}, r"vision_config\.model_type is 'clip_vision_model'"),
    ({"vision_config": {"model_arg": {}}}, r"Did you mean 'model_args'\?"),
    ({"vision_config": 3}, r"vision_config"),
    ({"text_config": "qwen2"}, r"text_config"),
    ({"text_config": {"model_type": "qwen9"}}, r"text_config\.model_type is 'qwen9'"),
]


@pytest.mark.parametrize(("given_args", "said"), IMPOSSIBLE_MODELS, ids=lambda v: str(v)[:40])
def test_impossible_model_is_refused(given_args, said):
    arguments = {"text_config": tiny.text_config(), "image_token_index": tiny.IMAGE_ID, **given_args}
    with pytest.raises(ConfigError, match=said):
        FastVlmConfig(**arguments)


@pytest.mark.parametrize(
    "wrong", [{"image_token_index": "x"}, {"projector_hidden_act": 3}, {"image_seq_length": "many"}]
)
def test_wrong_types_name_the_field(wrong):
    with pytest.raises(ConfigError, match=rf"FastVlmConfig\.{next(iter(wrong))} is .*; expected"):
        FastVlmConfig(**{"text_config": tiny.text_config(), "image_token_index": tiny.IMAGE_ID, **wrong})


def test_a_typo_in_a_file_is_refused_too(tmp_path):
    tiny.config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"layers"', '"layerz"'))
    with pytest.raises(ConfigError, match=r"unknown key 'layerz'\. Did you mean 'layers'\?"):
        FastVlmConfig.from_pretrained(tmp_path)


MODEL_ARGS = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.lists(st.integers(-1, 2), max_size=6),
        "embed_dims": st.lists(st.integers(-8, 96), max_size=6),
        "mlp_ratios": st.lists(st.floats(-1, 4), max_size=6),
        "token_mixers": st.lists(st.sampled_from(["repmixer", "attention", "pool", 3]), max_size=6),
        "pos_embs": st.lists(st.none() | st.integers(-1, 9), max_size=6),
        "downsamples": st.lists(st.booleans(), max_size=6),
        "repmixer_kernel_size": st.integers(-1, 5),
        "down_patch_size": st.integers(-1, 9),
        "cls_ratio": st.floats(-1, 4),
        "lkc_use_act": st.booleans(),
        "inference_mode": st.booleans(),
    },
)


@given(model_args=MODEL_ARGS)
def test_a_config_is_either_refused_or_can_be_built_and_run(model_args):
    arguments = {"layers": [1, 1], "embed_dims": [32, 32], "token_mixers": ["repmixer", "attention"], **model_args}
    try:
        config = FastViTHDConfig(model_args=arguments)
    except ConfigError:
        return
    with torch.device("meta"):
        encoder = FastViTHD(config).eval()
        feature_map = encoder(torch.rand(1, 3, 70, 64))
    assert feature_map.shape[1] == config.hidden_size
    assert feature_map.shape[2] * feature_map.shape[3] == num_visual_tokens(70, 64, config.stride_px)


def test_published_arguments_are_never_shared():
    FastViTHDConfig().model_args["layers"] = [1]
    assert FastViTHDConfig().stages[0].depth == 2
    assert PUBLISHED_MODEL_ARGS["layers"] == [2, 12, 24, 4, 2]


# The same files open in transformers' own class, and theirs in ours.


@pytest.fixture
def theirs():
    fast_vlm = pytest.importorskip("transformers.models.fast_vlm")
    pytest.importorskip("timm")
    return fast_vlm.FastVlmConfig


@pytest.mark.parametrize("name", ["0.5b", "7b", "tiny"])
def test_transformers_reads_ours(name, theirs, tmp_path):
    config = tiny.config() if name == "tiny" else FastVlmConfig.preset(name)
    config.save_pretrained(tmp_path)
    read = theirs.from_pretrained(tmp_path)
    assert read.image_token_index == config.image_token_index
    assert read.vision_config.hidden_size == config.vision_config.hidden_size
    assert read.vision_config.model_args == config.vision_config.model_args
    assert read.tie_word_embeddings == config.tie_word_embeddings
    ours, its = config.text_config.to_dict(), read.text_config.to_dict()
    assert {k: v for k, v in its.items() if k in ours} == {k: v for k, v in ours.items() if k in its}


def half_billion_like(theirs):
    text = dict(PRESETS["0.5b"]["text_config"])
    vision = {
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 3072,
        "label_names": [],
        "model_args": {"inference_mode": True},
        "model_type": "timm_wrapper",
        "num_classes": 0,
        "num_features": 3072,
        "pretrained_cfg": {"input_size": [3, 256, 256], "mean": [0.0, 0.0, 0.0]},
    }
    return theirs(text_config=text, vision_config=vision, image_seq_length=256, ignore_index=-100)


@pytest.mark.parametrize("make", [lambda theirs: theirs(), half_billion_like], ids=["default", "0.5b"])
def test_ours_reads_transformers(make, theirs, tmp_path):
    reference = make(theirs)
    reference.save_pretrained(tmp_path)
    config = FastVlmConfig.from_pretrained(tmp_path)
    for name in ("image_token_index", "image_seq_length", "projector_hidden_act", "multimodal_projector_bias"):
        assert getattr(config, name) == getattr(reference, name), name
    assert config.text_config.to_dict() == reference.text_config.to_dict()
    assert config.vision_config.hidden_size == reference.vision_config.hidden_size
    config.save_pretrained(tmp_path / "ours")
    assert theirs.from_pretrained(tmp_path / "ours").text_config.to_dict() == reference.text_config.to_dict()


def test_default_differs_from_transformers_default_as_documented(theirs):
    # Theirs has the class defaults of Qwen2 (rope theta 1e4): no checkpoint's numbers. Ours is the published 7B.
    assert theirs().text_config.rope_parameters["rope_theta"] == 10_000.0
    assert FastVlmConfig().text_config.rope_parameters["rope_theta"] == 1_000_000.0
    text = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text()
    assert "rope_theta" in text and "FastVlmConfig()" in text


def test_nothing_is_registered_by_importing():
    # Our classes stand behind the Auto classes only after fastvlm.register().
    assert "fastvlm" not in type(AutoConfig.for_model("fast_vlm")).__module__
