"""FastViTHD equals timm's `fastvit_mci3`: same state dict both ways, same maps, same gradients, in both forms."""

import functools

import pytest
import tiny
import torch

from fastvlm import FastViTHD, FastViTHDConfig

timm = pytest.importorskip("timm")

# Each changes one thing that `model_args` can set; stages beyond `layers` are cut off by timm and by us.
VARIATIONS = {
    "published_shape": {},
    "deeper": {"layers": [2, 1, 3, 2, 1]},
    "widths_that_are_not_doubled": {"embed_dims": [8, 8, 32, 32, 96]},
    "widths_equal_with_downsampling": {"embed_dims": [32, 32, 32, 32, 32]},
    "narrow_ffn": {"mlp_ratios": [3, 2, 1, 4, 3]},
    "repmixer_only": {"token_mixers": ["repmixer"] * 5, "pos_embs": [None] * 5},
    "attention_early": {
        "embed_dims": [32, 32, 64, 64, 64],
        "token_mixers": ["attention", "repmixer", "attention", "repmixer", "attention"],
    },
    "positions_everywhere": {"pos_embs": [3, (5, 5), (7, 7), 7, 5]},
    "no_positions": {"pos_embs": [None] * 5},
    "no_downsampling_in_stage_3": {"downsamples": [False, True, True, False, True], "embed_dims": [8, 16, 32, 32, 64]},
    "downsampling_before_stage_0": {"downsamples": [True, True, True, True, True]},
    "se_in_downsampling": {"se_downsamples": [False, True, True, True, True]},
    "no_activation_in_downsampling": {"lkc_use_act": False},
    "stem_scale_branch": {"stem_use_scale_branch": True},
    "small_kernels": {"repmixer_kernel_size": 5, "down_patch_size": 5},
    "two_stages": {
        "layers": [2, 2],
        "embed_dims": [8, 16],
        "mlp_ratios": [4, 4],
        "token_mixers": ["repmixer", "repmixer"],
        "pos_embs": [None, None],
        "downsamples": [False, True],
        "se_downsamples": [False, False],
    },
    "three_stages_with_attention": {
        "layers": [1, 1, 2],
        "embed_dims": [16, 32, 64],
        "token_mixers": ["repmixer", "repmixer", "attention"],
    },
    "wide_last_map": {"cls_ratio": 3.0},
}


def timm_encoder(**model_args):
    """timm's encoder; where we write a kernel size for a positional encoding, timm takes the layer."""
    if "pos_embs" in model_args:
        layer = timm.models.fastvit.RepConditionalPosEnc
        kernels = [(k, k) if isinstance(k, int) else k for k in model_args["pos_embs"]]
        model_args["pos_embs"] = [k and functools.partial(layer, spatial_shape=k) for k in kernels]
    return timm.create_model("fastvit_mci3", pretrained=False, num_classes=0, **{"inference_mode": True, **model_args})


def pair(*, size_args=None, **model_args):
    """Ours and timm's, with the same loud weights, in eval mode."""
    model_args = {**(tiny.VISION_ARGS if size_args is None else size_args), **model_args}
    ours = tiny.loud(FastViTHD(FastViTHDConfig(model_args=model_args))).eval()
    theirs = timm_encoder(**model_args).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def published():
    return pair(size_args={})


def largest_gap(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (320, 200), pytest.param(512, 512, marks=pytest.mark.slow)])
def test_published_encoder_equals_timm(published, height, width):
    ours, theirs = published
    image = tiny.images(1, height, width)
    with torch.no_grad():
        feature_map, reference = ours(image), theirs.forward_features(image)
    assert feature_map.shape == reference.shape == (1, 3072, -(-height // 64), -(-width // 64))
    assert reference.std() > 0.02, "a map of nearly equal values would show nothing"
    assert largest_gap(feature_map, reference) <= 1e-5


@pytest.mark.slow
def test_published_encoder_equals_timm_at_1024(published):
    ours, theirs = published
    image = tiny.images(1, 1024, 1024)
    with torch.no_grad():
        feature_map, reference = ours(image), theirs.forward_features(image)
    assert feature_map.shape == (1, 3072, 16, 16)
    assert largest_gap(feature_map, reference) <= 1e-5


@pytest.mark.parametrize("is_fused", [True, False], ids=["inference_form", "training_form"])
def test_state_dict_of_published_encoder_is_timms(is_fused, monkeypatch):
    monkeypatch.setattr(timm.models.fastvit, "trunc_normal_", lambda *_, **__: None)  # names and shapes, no values
    with torch.device("meta"):
        ours = FastViTHD(FastViTHDConfig(inference_mode=is_fused)).state_dict()
    theirs = timm_encoder(inference_mode=is_fused).state_dict()  # timm cannot be built on the meta device
    assert len(ours) == (628 if is_fused else 1529)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}


@pytest.mark.parametrize("is_fused", [True, False], ids=["inference_form", "training_form"])
@pytest.mark.parametrize("name", VARIATIONS)
def test_every_argument_means_what_it_means_in_timm(name, is_fused):
    ours, theirs = pair(**VARIATIONS[name], inference_mode=is_fused)
    ours.load_state_dict(theirs.state_dict(), strict=True)  # and back
    image = tiny.images(2, 160, 96)
    with torch.no_grad():
        feature_map, reference = ours(image), theirs.forward_features(image)
    assert largest_gap(feature_map, reference) <= 1e-5 * max(1.0, reference.abs().max().item())


def test_timm_fuses_to_the_same_weights():
    ours, theirs = pair(inference_mode=False, se_downsamples=[False, True, True, True, True])
    ours.reparameterize()
    timm.utils.reparameterize_model(theirs, inplace=True)
    reference = theirs.state_dict()
    assert ours.state_dict().keys() == reference.keys()
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("is_fused", [True, False], ids=["inference_form", "training_form"])
def test_gradients_and_running_statistics_in_train_mode_equal_timms(is_fused):
    ours, theirs = pair(inference_mode=is_fused)
    image = tiny.images(2, 128, 128)
    weight = torch.randn(256, generator=torch.Generator().manual_seed(3)).reshape(1, -1, 1, 1)
    for encoder, forward in ((ours.train(), ours), (theirs.train(), theirs.forward_features)):
        encoder.zero_grad()
        (forward(image) * weight).mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)
        assert parameter.grad.abs().max() > 0, f"{name} does not learn"
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], atol=1e-5, rtol=1e-5, msg=name)


def test_stage_maps_equal_timms_intermediates():
    ours, theirs = pair()
    image = tiny.images(1, 192, 128)
    with torch.no_grad():
        feature_map, maps = ours.forward_with_stages(image)
        last, intermediates = theirs.forward_intermediates(image)
    assert len(maps) == len(intermediates) == 5
    for ours_map, reference in zip(maps, intermediates, strict=True):
        assert largest_gap(ours_map, reference) <= 1e-5
    assert largest_gap(feature_map, last) <= 1e-5


def test_bfloat16_is_as_close_to_float32_as_timms():
    ours, theirs = pair()
    image = tiny.images(2, 256, 256)
    with torch.no_grad():
        exact = ours(image)
        our_gap = largest_gap(ours.bfloat16()(image.bfloat16()).float(), exact)
        their_gap = largest_gap(theirs.bfloat16().forward_features(image.bfloat16()).float(), exact)
    assert our_gap <= 0.02 * exact.abs().max()
    assert our_gap <= 1.5 * their_gap
