"""The fast encoder equals the plain one, for any encoder and any image."""

import copy
import dataclasses

import engines
import pytest
import tiny
import torch
from encoder_strategy import encoders
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import NO_KERNELS, relative_gap

from fastvlm import FastViTHD, FastViTHDConfig
from fastvlm.backends.cpu import encoder as vision
from fastvlm.backends.cpu import linear
from fastvlm.backends.cpu.encoder import Convolution, FastEncoder, InBands
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.native import encoder_linear as native_linear
from fastvlm.model.projector import as_feature_tokens

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
DTYPES = list(BOUNDS)


def encoder(**model_args):
    return tiny.loud(FastViTHD(tiny.vision_config(**model_args))).eval()


@torch.no_grad()
def gap(plain, image, dtype=torch.float32):
    """Relative gap between fast and plain features of `image`, which must not be nearly constant."""
    expected = plain(image)
    assert expected.std() > 0.005, "a map of nearly equal values would show nothing"
    result = FastEncoder(plain, dtype)(image)
    assert result.shape == expected.shape and result.dtype == dtype
    return relative_gap(result, expected)


@pytest.fixture
def torch_alone(monkeypatch):
    """No compiled kernels, also where there are some."""
    for module in (vision, linear, native_linear):
        monkeypatch.setattr(module, "native_kernels", lambda *_: None)


@pytest.fixture(params=["compiled", "torch"])
def any_kernels(request):
    """Compiled kernels where there are some, and without them."""
    if request.param == "torch":
        request.getfixturevalue("torch_alone")


@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 128, 128), (3, 64, 200), (2, 1, 1), (1, 65, 1), (1, 1, 130), (1, 70, 66)])
def test_equals_the_plain_encoder_for_any_image(size, dtype):
    assert gap(encoder(), tiny.images(*size), dtype) < BOUNDS[dtype]


@settings(max_examples=6, deadline=None)
@given(config=encoders(), height=st.integers(1, 90), width=st.integers(1, 90), count=st.integers(1, 3))
def test_equals_the_plain_encoder_for_any_encoder(config, height, width, count):
    plain = tiny.loud(FastViTHD(config)).eval()
    image = tiny.images(count, height, width)
    with torch.no_grad():
        expected = plain(image)
    assert relative_gap(FastEncoder(plain)(image), expected) < BOUNDS[torch.float32]


@pytest.mark.parametrize(
    "model_args",
    [
        {"cls_ratio": 3.0},
        {"embed_dims": [32, 32, 32, 32, 32]},
        {"embed_dims": [8, 8, 32, 32, 96]},
        {"lkc_use_act": False},
        {"repmixer_kernel_size": 5, "down_patch_size": 5},
        {"downsamples": [True] * 5, "se_downsamples": [True] * 5, "embed_dims": [8, 16, 48, 96, 192]},
        {"mlp_ratios": [3, 2, 1, 4, 3]},
        {"layers": [2, 2], "embed_dims": [8, 16]},
    ],
    ids=lambda args: next(iter(args)),
)
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_argument_of_an_encoder(model_args, dtype):
    assert gap(encoder(**model_args), tiny.images(2, 160, 96), dtype) < BOUNDS[dtype]


@pytest.mark.slow
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_published_encoder(dtype):
    published = tiny.loud(FastViTHD(FastViTHDConfig())).eval()
    assert gap(published, tiny.images(1, 256, 256), dtype) < BOUNDS[dtype]
    assert gap(published, tiny.images(1, 320, 200), dtype) < BOUNDS[dtype]


def test_the_training_form_is_taken_too_and_stays_as_it_is():
    plain = encoder(inference_mode=False)
    state = copy.deepcopy(plain.state_dict())
    assert gap(plain, tiny.images(1)) < BOUNDS[torch.float32]
    assert plain.config.is_inference_form is False
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_a_bfloat16_encoder_is_folded_in_float32():
    plain = encoder().bfloat16()
    image = tiny.images(1)
    fast = FastEncoder(plain)
    assert fast.dtype == torch.bfloat16
    assert next(plain.parameters()).dtype == torch.bfloat16
    exact = copy.deepcopy(plain).float()
    assert relative_gap(fast(image), exact(image)) < 1e-2
    assert relative_gap(FastEncoder(plain, torch.float32)(image), exact(image)) < 1e-4


def test_batch_equals_each_image_alone():
    fast, images = FastEncoder(encoder()), tiny.images(3)
    alone = torch.cat([fast(image[None]) for image in images])
    torch.testing.assert_close(fast(images), alone, atol=1e-5, rtol=1e-5)


def test_images_of_any_dtype_and_layout_and_they_stay_as_they_are():
    fast, image = FastEncoder(encoder()), tiny.images(2, 96, 128)
    kept = image.clone()
    expected = fast(image)
    assert torch.equal(image, kept)
    torch.testing.assert_close(fast(image.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(fast(image.double()), expected)
    assert torch.equal(fast(image), expected), "nothing of the last image is left in the encoder"


def test_in_slices_the_features_are_the_same_to_the_bit(tiny_model):
    """Left alone after each step, for another image's or a whole one; what is dropped halfway leaves nothing."""
    embed = engines.CpuEncode(tiny_model)
    image, other, third = tiny.images(1), tiny.images(1, 192, 70, seed=2), tiny.images(1, seed=3)
    expected, embeds, num_slices = embed(image), [], 0

    def kept():
        embeds.append((yield from embed.slices(image)))

    dropped = embed.slices(other)
    for _ in kept():
        num_slices += 1
        assert torch.is_grad_enabled(), "a slice that has ended changes what others compute in"
        if num_slices < 6:
            next(dropped)
            embed(third)
        else:
            dropped.close()
    assert num_slices == len(FastEncoder(tiny_model.model.vision_tower.timm_model).steps)
    assert torch.equal(embeds[0], expected) and not embeds[0].requires_grad


def test_the_map_is_tokens_without_a_copy():
    feature_map = FastEncoder(encoder())(tiny.images(2))
    assert as_feature_tokens(feature_map).is_contiguous()


def test_features_carry_no_graph():
    assert not FastEncoder(encoder())(tiny.images(1).requires_grad_()).requires_grad


@pytest.mark.parametrize("rows", [1, 7, 64, 10_000])
def test_tiles_of_any_size_give_the_same(monkeypatch, rows):
    plain = encoder()
    monkeypatch.setattr(vision, "tile_rows", lambda x: rows)
    assert gap(plain, tiny.images(1, 64, 128)) < BOUNDS[torch.float32]


@pytest.mark.parametrize("pixels", [1, 700, 5_000, 1 << 30])
@pytest.mark.parametrize("size", [(1, 128, 64), (2, 67, 90), (1, 1, 130)])
def test_a_stem_in_bands_of_any_height_gives_the_same(monkeypatch, pixels, size):
    stem, image = FastEncoder(encoder()).steps[0], tiny.images(*size).permute(0, 2, 3, 1)
    assert isinstance(stem, InBands)
    whole = image
    for step in stem.steps:
        whole = step(whole)
    monkeypatch.setattr(vision, "BAND_PIXELS", pixels)
    torch.testing.assert_close(stem(image), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_convolution_reads_nothing_beside_a_narrow_image(width):
    plain = torch.nn.Conv2d(3, 96, 3, 2, 1).requires_grad_(False)
    conv, x = Convolution(plain, torch.bfloat16), torch.randn(1, 65, width, 3)
    for _ in range(6):
        left = [torch.full((200_000,), torch.nan, dtype=torch.bfloat16) for _ in range(3)]
        del left  # what is allocated next may lie there
        assert relative_gap(conv(x.bfloat16()), plain(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) < 2e-2


@pytest.mark.parametrize("kernel", [(3, 1), (3, 2), (7, 2), (7, 1)])
@pytest.mark.parametrize("first", range(7))
def test_rows_of_a_convolution_are_made_of_the_rows_it_says(kernel, first):
    (size, stride), height = kernel, 17
    conv = Convolution(torch.nn.Conv2d(3, 6, size, stride, size // 2, groups=3).requires_grad_(False), torch.float32)
    x = torch.randn(2, height, 16, 3)
    expected = conv(x)
    assert conv.out_height(height) == expected.shape[1]
    for stop in range(first + 1, expected.shape[1] + 1):
        start, end = conv.rows_needed(height, first, stop)
        rows = conv.rows(x[:, start:end], height, first, stop)
        torch.testing.assert_close(rows, expected[:, first:stop])


@pytest.mark.usefixtures("torch_alone")
@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("rows", [100, 1 << 20])
def test_with_and_without_tile_registers_the_features_are_the_same(monkeypatch, has_tiles, rows):
    kernels = dataclasses.replace(cpu_kernels(), has_bfloat16_tiles=has_tiles)
    monkeypatch.setattr(linear, "cpu_kernels", lambda: kernels)
    monkeypatch.setattr(vision, "cpu_kernels", lambda: kernels)
    monkeypatch.setattr(vision, "tile_rows", lambda x: rows)
    assert gap(encoder(), tiny.images(2, 160, 96), torch.bfloat16) < BOUNDS[torch.bfloat16]


def test_tiles_are_larger_behind_tile_registers(monkeypatch):
    sizes = []
    for has_tiles in (False, True):
        kernels = dataclasses.replace(cpu_kernels(), has_bfloat16_tiles=has_tiles)
        monkeypatch.setattr(vision, "cpu_kernels", lambda kernels=kernels: kernels)
        sizes.append([vision.tile_rows(torch.empty(1, 2, 2, 8, dtype=dtype)) for dtype in DTYPES])
    assert sizes[0][0] == sizes[0][1] == sizes[1][0] < sizes[1][1]


@pytest.mark.parametrize("num_bytes", [1, 600, 1 << 30])
def test_heads_in_groups_of_any_size_give_the_same(monkeypatch, num_bytes):
    monkeypatch.setattr(vision, "SCORE_BYTES", num_bytes)
    assert gap(encoder(), tiny.images(2, 128, 192)) < BOUNDS[torch.float32]


def test_without_fast_kernels_the_features_are_the_same(monkeypatch):
    monkeypatch.setattr(linear, "cpu_kernels", lambda: NO_KERNELS)
    assert gap(encoder(), tiny.images(2, 64, 100)) < BOUNDS[torch.float32]


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_black_and_white_images_are_finite(fill):
    assert FastEncoder(encoder(), torch.bfloat16)(torch.full((1, 3, 64, 64), fill)).isfinite().all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_image_embeddings_are_the_models(tiny_model, dtype):
    image = tiny.images(2)
    with torch.no_grad():
        expected = tiny_model.get_image_features(image, return_dict=True).pooler_output
    embeds = engines.CpuEncode(tiny_model, dtype)(image)
    assert embeds.dtype == (dtype or torch.float32)
    assert relative_gap(embeds, expected) < BOUNDS[dtype or torch.float32]
