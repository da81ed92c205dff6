"""Configurations of which something was changed: a config comes of it, or one of our errors."""

import copy
import json
import math

import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration
from fastvlm.config import read_config
from fastvlm.config_limits import without_code_choices
from fastvlm.errors import AttentionError, CheckpointError, ConfigError, FastVlmError
from fastvlm.formats.apple_config import from_apple_config, to_apple_config
from fastvlm.formats.folder import config_of_folder
from fastvlm.hf.pretrained import expected_shapes

OURS = json.loads(tiny.config().to_json_string(use_diff=False))
APPLE = to_apple_config(FastVlmConfig.preset("0.5b").to_dict(), size_px=1024, fit="pad")


def places(tree, path=()):
    """Every place in a nested dictionary, and two that are not there yet."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))
    if not path:
        yield from (("torch_dtype",), ("attn_implementation",), ("text_config", "head_dim"), ("text_config", "dtype"))
        yield from (("text_config", "rope_theta"), ("text_config", "rope_scaling"), ("vision_config", "layers"))


def changed(tree, path, value):
    made = copy.deepcopy(tree)
    inside = made
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return made


NUMBERS = [0, -1, 1, 3, 10**6, 10**9, 10**30, -(10**30), 0.0, 0.5, 1e308, -1.5, math.inf, math.nan, True, False]
TEXTS = [None, "", "load", "x" * 1000, "owner/name"]
LISTS = [[], [1], [[]], [None], ["load"], [0] * 5, [10**9] * 5, [1.5] * 5, [True] * 5]
ROPES = [{"rope_type": "default"}, {"rope_type": [], "rope_theta": "x"}, {"rope_type": "yarn", "factor": -1}]
EVIL = st.sampled_from([*NUMBERS, *TEXTS, *LISTS, {}, {"a": 1}, {"": {}}, *ROPES])


def outcome(make):
    """What `make` gives, or None for one of our errors; others fail the test."""
    try:
        return make()
    except FastVlmError:
        return None


@given(st.sampled_from(sorted(places(OURS))), EVIL)
@example(("text_config",), [])
@example(("text_config", "num_attention_heads"), 0)
@example(("text_config", "num_hidden_layers"), 10**9)
@example(("dtype",), "load")
@example(("vision_config", "model_args"), {"layers": [10**9]})
def test_both_readers_take_a_changed_config_or_say_what_is_wrong(path, value):
    stored = changed(OURS, path, value)
    whole = outcome(lambda: FastVlmConfig.from_dict(copy.deepcopy(stored)))
    plain = outcome(lambda: read_config(stored))
    if plain is not None and whole is not None:  # the plain one ignores what transformers' base class is strict about
        assert plain.text_config.hidden_size == whole.text_config.hidden_size
    if whole is not None:
        shapes = outcome(lambda: expected_shapes(FastVlmForConditionalGeneration, whole))
        assert shapes is None or len(shapes) < 10_000


@given(st.sampled_from(sorted(APPLE)), EVIL)
@example("rope_scaling", [])
@example("image_token_index", 10**9)
@example("mm_vision_tower", "mobileclip_l_" + "9" * 5000)
def test_apples_config_with_something_changed(key, value):
    made = outcome(lambda: FastVlmConfig.from_dict(from_apple_config({**APPLE, key: value})))
    assert made is None or made.text_config.vocab_size <= 1 << 22


@given(st.sampled_from(sorted(places(OURS))), EVIL)
@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_folders_with_a_changed_config(tmp_path_factory, path, value):
    folder = tmp_path_factory.mktemp("checkpoint")
    names = ("model.language_model.embed_tokens.weight", "model.vision_tower.timm_model.stem.0.conv_kxk.0.conv.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(changed(OURS, path, value)))
    outcome(lambda: FastVlmConfig.from_dict(config_of_folder(folder)))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("text_config",), [], r"FastVlmConfig\.text_config is \[\]; expected dict"),
        (("text_config", "num_attention_heads"), 0, r"text_config\.num_attention_heads is 0; expected a whole number"),
        (("text_config", "num_attention_heads"), 3, "which 3 attention heads do not divide"),
        (("text_config", "num_key_value_heads"), 3, "which 3 key-value heads do not divide"),
        (("text_config", "num_hidden_layers"), 10**9, r"num_hidden_layers is 1000000000; expected .* to 512"),
        (("text_config", "hidden_size"), True, r"hidden_size is True; expected a whole number"),
        (("text_config", "rms_norm_eps"), math.nan, r"rms_norm_eps is nan"),
        (("text_config", "dtype"), "load", r"text_config\.dtype is 'load'; expected one of bfloat16"),
        (("dtype",), "load", r"FastVlmConfig\.dtype is 'load'; expected one of bfloat16"),
        (("projector_hidden_act",), "load", "projector_hidden_act is 'load'"),
        (("vision_config", "model_args"), {"layers": [10**9]}, "depth 1000000000"),
        (("image_seq_length",), -1, "image_seq_length is -1"),
    ],
)
def test_the_words(path, value, words):
    with pytest.raises(ConfigError, match=words):
        FastVlmConfig.from_dict(changed(OURS, path, value))


def test_a_dtype_that_is_asked_for_is_one(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    with pytest.raises((ConfigError, CheckpointError), match=r"dtype is 'load'"):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path, dtype="load")


@pytest.mark.parametrize("place", [(), ("text_config",), ("vision_config",)])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_file_does_not_choose_the_code_that_computes(tmp_path, place, key):
    tiny.model().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(changed(stored, (*place, key), "some-owner/some-kernel")))
    with pytest.warns(UserWarning, match=rf"chooses '{'.'.join((*place, key))}', which is ignored"):
        config = FastVlmConfig.from_pretrained(tmp_path)
    assert "some-owner" not in str(vars(config)) and "some-owner" not in str(vars(config.text_config))
    with pytest.warns(UserWarning, match="which is ignored"):
        model = FastVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.text_config._attn_implementation in ("sdpa", "eager")


def test_the_caller_still_chooses(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    model = FastVlmForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config.text_config._attn_implementation == "eager"
    with pytest.raises((AttentionError, ValueError)):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="nonsense")


def test_what_is_left_out_is_named():
    kept, found = without_code_choices({"a": 1, "_attn_implementation": "x", "b": {"c": {"experts_implementation": 1}}})
    assert kept == {"a": 1, "b": {"c": {}}} and found == ["_attn_implementation", "b.c.experts_implementation"]
