"""The table of names against Apple's layout written down by hand, and there and back for any encoder."""

import apple_layout
import encoder_strategy
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvlm import FastViTHDConfig, FastVlmConfig, FastVlmForConditionalGeneration
from fastvlm.formats.names import (
    ENCODER,
    is_apple,
    is_multi_branch,
    names_from_apple,
    names_from_fast_vlm,
    names_to_apple,
)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("depths", [apple_layout.PUBLISHED_DEPTHS, (1, 1, 1, 1, 1)])
def test_every_key_of_the_handwritten_list_is_translated_both_ways(depths, is_fused):
    pairs = apple_layout.all_pairs(depths, 3, is_fused=is_fused)
    ours = dict(pairs)
    assert names_from_apple(ours) == ours
    assert names_to_apple(ours.values()) == {name: apple for apple, name in pairs}


@pytest.mark.parametrize(("is_fused", "count"), [(True, 628), (False, 1529)])
def test_the_published_encoder_has_as_many_entries_as_apples(is_fused, count):
    pairs = apple_layout.encoder_pairs(is_fused=is_fused)
    with torch.device("meta"):
        from fastvlm import FastViTHD

        state = FastViTHD(FastViTHDConfig(model_args={"inference_mode": is_fused})).state_dict()
    assert len(pairs) == len(state) == count
    assert {ours.removeprefix(ENCODER) for _, ours in pairs} == set(state)


def test_the_clip_head_is_dropped_and_unknown_keys_keep_their_names():
    names = names_from_apple([apple_layout.HEAD_PROJ, "model.something_else", "model.vision_tower.vision_tower.odd"])
    assert names == {
        apple_layout.HEAD_PROJ: None,
        "model.something_else": "model.something_else",
        "model.vision_tower.vision_tower.odd": "model.vision_tower.vision_tower.odd",
    }


def test_the_attention_projection_is_not_taken_for_a_downsampling():
    key = apple_layout.APPLE + "network.7.0.token_mixer.proj.weight"
    names = names_from_apple([ours for ours, _ in apple_layout.encoder_pairs()])
    assert names[key] == ENCODER + "stages.3.blocks.0.token_mixer.proj.weight"


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("vision_tower.timm_model.stem.0.reparam_conv.weight", ENCODER + "stem.0.reparam_conv.weight"),
        ("vision_tower.stem.0.reparam_conv.weight", ENCODER + "stem.0.reparam_conv.weight"),
        ("model.vision_tower.stem.0.reparam_conv.bias", ENCODER + "stem.0.reparam_conv.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("odd", "odd"),
    ],
)
def test_older_spellings_of_fast_vlm_are_understood(old, name):
    assert names_from_fast_vlm([old]) == {old: name}


def test_the_layouts_are_told_apart():
    apple, ours = zip(*apple_layout.all_pairs((1, 1, 1, 1, 1), 1), strict=True)
    assert is_apple(apple)
    assert not is_apple(ours)
    assert not is_apple(name.removeprefix("model.") for name in ours)


def test_the_encoders_form_is_told_by_its_keys():
    for is_fused in (True, False):
        keys = [ours for _, ours in apple_layout.encoder_pairs((1, 1, 1, 1, 1), is_fused=is_fused)]
        assert is_multi_branch(keys) is not is_fused
    assert not is_multi_branch(["model.language_model.layers.0.mixer.weight"])


@settings(max_examples=15, deadline=None)
@given(encoder_strategy.encoders(), st.booleans(), st.randoms())
def test_any_encoders_names_survive_the_way_to_apple_and_back(vision, is_tied, random):
    config = FastVlmConfig(
        text_config=tiny.text_config(tie_word_embeddings=is_tied), vision_config=vision, image_token_index=1
    )
    with torch.device("meta"):
        keys = list(FastVlmForConditionalGeneration(config).state_dict())
    random.shuffle(keys)
    apple = names_to_apple(keys)
    assert len(set(apple.values())) == len(keys)
    assert names_from_apple(apple.values()) == {name: key for key, name in apple.items()}
