"""FastViTHD by itself: sizes, forms, fusing, deployment, stages, initialization."""

import copy
import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastvlm import FastViTHD, FastViTHDConfig, num_visual_tokens
from fastvlm.model.projector import as_feature_tokens

SHALLOW = {"layers": [1, 0, 0, 0, 0], "embed_dims": [8, 8, 8, 32, 32]}


def encoder(**model_args):
    return tiny.loud(FastViTHD(tiny.vision_config(**model_args))).eval()


def gap(a, b):
    return (a - b).abs().max().item()


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_published_numbers():
    with torch.device("meta"):
        published = FastViTHD()
    assert sum(p.numel() for p in published.parameters()) == 122_714_208
    assert sum(b.numel() for b in published.buffers()) == 35_756
    assert len(published.state_dict()) == 628
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in published.stages.named_children()}
    assert parts == {"0": 160_320, "1": 3_739_968, "2": 29_096_064, "3": 29_166_336, "4": 59_324_928}
    assert sum(p.numel() for p in published.stem.parameters()) == 12_960
    assert sum(p.numel() for p in published.final_conv.parameters()) == 1_213_632


def test_published_training_form():
    with torch.device("meta"):
        training = FastViTHD(FastViTHDConfig(inference_mode=False))
    assert sum(p.numel() for p in training.parameters()) == 122_875_584
    assert len(training.state_dict()) == 1529
    assert not training.is_fused


def test_published_encoder_fuses_on_the_meta_device():
    with torch.device("meta"):
        fused, published = FastViTHD(FastViTHDConfig(inference_mode=False)).reparameterize(), FastViTHD()
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in fused.state_dict().items()} == shapes


@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_token_count_is_that_of_the_real_map(height, width):
    with torch.no_grad():
        feature_map = FastViTHD(tiny.vision_config(**SHALLOW)).eval()(torch.rand(1, 3, height, width))
    assert feature_map.shape[1:] == (64, math.ceil(height / 64), math.ceil(width / 64))
    assert as_feature_tokens(feature_map).shape == (1, num_visual_tokens(height, width), 64)


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 300), downsamples=st.lists(st.booleans(), min_size=5, max_size=5))
def test_token_count_follows_the_strides_of_any_encoder(side, downsamples):
    config = FastViTHDConfig(
        **{**SHALLOW, "embed_dims": [8] * 5, "token_mixers": ["repmixer"] * 5}, downsamples=downsamples
    )
    with torch.no_grad():
        feature_map = FastViTHD(config).eval()(torch.rand(1, 3, side, side))
    assert config.stride_px == 4 * 2 ** sum(downsamples)
    assert feature_map.shape[2] * feature_map.shape[3] == num_visual_tokens(side, side, config.stride_px)


def test_feature_tokens_are_row_major():
    feature_map = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert as_feature_tokens(feature_map).flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "args", [{}, {"se_downsamples": [True] * 5, "downsamples": [True] * 5}, {"lkc_use_act": False}]
)
def test_whole_fused_equals_branches_after_random_statistics(args):
    training = encoder(inference_mode=False, stem_use_scale_branch=True, **args)
    image = tiny.images(2, 192, 130)
    with torch.no_grad():
        branches = training(image)
        assert branches.std() > 0.02
        assert gap(training.reparameterize()(image), branches) <= 1e-4
    assert training.is_fused


def test_fusing_twice_is_fusing_once_and_loads_into_the_inference_form():
    fused = encoder(inference_mode=False).reparameterize()
    once = copy.deepcopy(fused.state_dict())
    assert same_state(once, fused.reparameterize().state_dict())
    assert fused.config.is_inference_form
    fresh = FastViTHD(tiny.vision_config())
    fresh.load_state_dict(once, strict=True)
    assert same_state(fresh.state_dict(), once)


def test_fusing_leaves_a_config_that_others_hold():
    config = tiny.vision_config(inference_mode=False)
    FastViTHD(config).reparameterize()
    assert FastViTHD(tiny.vision_config(inference_mode=False)).config.is_inference_form is False
    assert config.is_inference_form, "the config of the encoder itself follows, so that saving it stays true"


@pytest.mark.parametrize("is_fused", [True, False])
def test_deployed_copy_computes_the_same_and_leaves_the_original(is_fused):
    original = encoder(inference_mode=is_fused)
    image = tiny.images(2)
    state, form = copy.deepcopy(original.state_dict()), original.config.is_inference_form
    with torch.no_grad():
        before = original(image)
        deployed = original.deploy()
        assert gap(deployed(image), before) <= 1e-4
        assert torch.equal(original(image), before)
    assert same_state(original.state_dict(), state)
    assert original.config.is_inference_form is form is is_fused
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(p.requires_grad for p in deployed.parameters())
    assert all(p.requires_grad for p in original.parameters())
    shared = {p.data_ptr() for p in original.parameters()} & {p.data_ptr() for p in deployed.parameters()}
    assert not shared


def test_stage_maps_have_the_published_strides():
    feature_map, maps = encoder().forward_with_stages(tiny.images(1, 256, 128))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (8, 64, 32),
        (16, 32, 16),
        (32, 16, 8),
        (64, 8, 4),
        (128, 4, 2),
    ]
    assert feature_map.shape == (1, 256, 4, 2)


def test_batch_equals_each_image_alone():
    e = encoder()
    images = tiny.images(3)
    with torch.no_grad():
        together = e(images)
        alone = torch.cat([e(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_black_and_white_images_are_finite(fill):
    assert encoder()(torch.full((1, 3, 64, 64), fill)).isfinite().all()


def test_new_weights_have_the_published_distribution():
    torch.manual_seed(0)
    e = FastViTHD(tiny.vision_config(layers=[1, 1, 1, 1, 2], embed_dims=[32, 64, 128, 256, 512]))
    block = e.stages[4].blocks[0]
    for weight in (block.mlp.fc1.weight, block.mlp.conv.conv.weight, block.token_mixer.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.mlp.fc1.bias.abs().max() == 0
    assert (block.layer_scale_1.gamma == 1e-5).all()


def test_copies_and_pickles_compute_the_same():
    import pickle

    e = encoder()
    image = tiny.images(1)
    with torch.no_grad():
        for twin in (copy.deepcopy(e), pickle.loads(pickle.dumps(e))):
            assert torch.equal(twin(image), e(image))
