"""Fitting images into pixels: exact against plain arithmetic of PIL, whole over all shapes, modes and settings."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastvlm import FastVlmConfig, num_visual_tokens
from fastvlm.errors import ConfigError, ImageError
from fastvlm.hf.image_processor import FastVlmImageProcessor
from fastvlm.images import ImageLimits
from fastvlm.images import fitting as module
from fastvlm.processing.image_processor import IMAGE_FITS, fit_image, image_size_px

BICUBIC = Image.Resampling.BICUBIC


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def padded(image, height, width):
    """Apple's way, as it is told: the whole canvas, black, the image in its middle (floor), then PIL's resize.

    One call for squares. For other targets PIL chooses which way goes first by the shape; here x always does.
    """
    canvas_width = max(image.width, -(-image.height * width // height))
    canvas_height = max(image.height, -(-image.width * height // width))
    canvas = Image.new("RGB", (canvas_width, canvas_height))
    canvas.paste(image, ((canvas_width - image.width) // 2, (canvas_height - image.height) // 2))
    if width == height:
        return canvas.resize((width, height), BICUBIC)
    return canvas.resize((width, canvas_height), BICUBIC).resize((width, height), BICUBIC)


# ------------------------------------------------------------------------------------------------------ pad


@pytest.mark.parametrize(
    "size", [(300, 200), (201, 300), (64, 64), (1, 1), (1, 700), (700, 1), (513, 512), (2000, 900)]
)
@pytest.mark.parametrize("target", [(64, 64), (256, 256), (128, 320), (320, 128)])
def test_pad_equals_the_whole_canvas_bit_for_bit(size, target):
    image = noise(*size)
    assert np.array_equal(np.asarray(fit_image(image, *target)), np.asarray(padded(image, *target)))


def test_pad_in_blocks_equals_the_whole_canvas():
    """An image so tall that its rows go through in several blocks."""
    image = noise(90, 5000)
    assert 4_000_000 // 5000 < 5000
    assert np.array_equal(np.asarray(fit_image(image, 256, 256)), np.asarray(padded(image, 256, 256)))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_pad_equals_the_whole_canvas_for_any_size(width, height, rows, columns, seed):
    image = noise(width, height, seed)
    target = (64 * rows, 64 * columns)
    assert np.array_equal(np.asarray(fit_image(image, *target)), np.asarray(padded(image, *target)))


def test_pad_keeps_the_sides_of_a_wide_image_and_pads_with_black():
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((255, 0, 0), (0, 0, 30, 100))
    wide.paste((0, 0, 255), (270, 0, 300, 100))
    pixels = np.asarray(fit_image(wide, 300, 300))
    assert (pixels[:97] == 0).all()
    assert (pixels[203:] == 0).all()
    assert tuple(pixels[150, 5]) == (255, 0, 0)
    assert tuple(pixels[150, 295]) == (0, 0, 255)
    cropped = np.asarray(fit_image(wide, 300, 300, fit="crop"))
    assert (cropped == 255).all()  # the colored sides are gone: that is why crop is not the default


def test_an_odd_margin_goes_below_and_to_the_right():
    image = Image.new("RGB", (64, 63), "white")
    rows = np.asarray(fit_image(image, 64, 64))[:, 0, 0]
    assert rows[0] == 255
    assert rows[-1] == 0


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 100_000), (100_000, 1), (30_000, 400)])
@pytest.mark.parametrize("fit", IMAGE_FITS)
def test_very_long_images_cost_little(size, fit, monkeypatch):
    """No image on the way has more pixels than a few times what comes in and goes out."""
    made = []
    for owner, name in ((Image, "new"), (Image.Image, "resize"), (Image.Image, "crop")):
        monkeypatch.setattr(owner, name, _noting(made, getattr(owner, name)))
    fitted = fit_image(Image.new("RGB", size, (255, 0, 0)), 1024, 1024, fit=fit)
    assert fitted.size == (1024, 1024)
    assert np.asarray(fitted)[..., 0].max() > 0  # still to be seen
    assert sum(made) < 6 * (size[0] * size[1] + 1024 * 1024)


def _noting(made, plain):
    def call(*args, **kwargs):
        image = plain(*args, **kwargs)
        made.append(image.width * image.height)
        return image

    return call


def test_beyond_the_canvas_limit_pad_is_the_same_inside(monkeypatch):
    image = Image.fromarray(np.linspace(0, 255, 150 * 900).reshape(150, 900).astype(np.uint8)).convert("RGB")
    exact = np.asarray(fit_image(image, 128, 128)).astype(int)
    monkeypatch.setattr(module, "MAX_CANVAS_PIXELS", 500)
    close = np.asarray(fit_image(image, 128, 128)).astype(int)
    inside = slice(55, 73)
    assert not np.array_equal(exact, close)  # the other way has been taken
    assert np.abs(exact - close)[inside].max() <= 8  # half a row of this ramp
    assert (close[:50] == 0).all()


# ------------------------------------------------------------------------------------------------------ crop, stretch


def cropped(image, side):
    """transformers' rule: short edge to `side`, long edge truncated, the middle (floor)."""
    short, long = sorted(image.size)
    new_long = int(side * long / short)
    size = (side, new_long) if image.width <= image.height else (new_long, side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return image.resize(size, BICUBIC).crop((left, top, left + side, top + side))


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 4), st.integers(0, 99))
def test_crop_equals_resize_and_centre_crop(width, height, multiple, seed):
    image = noise(width, height, seed)
    fitted = fit_image(image, 64 * multiple, 64 * multiple, fit="crop")
    assert np.array_equal(np.asarray(fitted), np.asarray(cropped(image, 64 * multiple)))


def test_crop_to_a_wide_target_covers_it():
    image = Image.new("RGB", (100, 100), "white")
    for target in ((64, 256), (256, 64)):
        assert (np.asarray(fit_image(image, *target, fit="crop")) == 255).all()


def test_crop_of_the_kept_part_alone_is_within_one_step(monkeypatch):
    image = noise(900, 30)
    exact = np.asarray(fit_image(image, 64, 64, fit="crop")).astype(int)
    monkeypatch.setattr(module, "MAX_UNCROPPED_PIXELS", 1)
    alone = np.asarray(fit_image(image, 64, 64, fit="crop")).astype(int)
    assert np.abs(exact - alone).max() <= 1


def test_stretch_is_one_resize():
    image = noise(70, 30)
    expected = image.resize((128, 64), BICUBIC)
    assert np.array_equal(np.asarray(fit_image(image, 64, 128, fit="stretch")), np.asarray(expected))


@pytest.mark.parametrize("fit", IMAGE_FITS)
def test_all_fits_agree_on_images_of_the_target_shape(fit):
    image = noise(90, 45)
    expected = image.resize((256, 128), BICUBIC)
    assert np.array_equal(np.asarray(fit_image(image, 128, 256, fit=fit)), np.asarray(expected))


# ------------------------------------------------------------------------------------------------------ pixel values


def test_pixel_values_are_float32_bytes_over_255():
    ramp = np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3) % 256
    image = Image.fromarray(ramp.astype(np.uint8))
    pixels = FastVlmImageProcessor(image_size=64)(image).pixel_values
    assert pixels.dtype == torch.float32
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.is_contiguous()
    reference = (ramp.astype(np.float64) * (1 / 255)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(pixels[0].numpy(), reference)
    assert pixels.min() == 0.0
    assert pixels.max() == 1.0


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    target=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    fit=st.sampled_from(IMAGE_FITS),
)
def test_any_images_in_any_mode_and_size(sizes, target, fit):
    height, width = 64 * target[0], 64 * target[1]
    processor = FastVlmImageProcessor(image_size=(height, width), image_fit=fit)
    images = [noise(*size, seed=index) for index, size in enumerate(sizes)]
    pixels = processor(images).pixel_values
    assert pixels.shape == (len(sizes), 3, height, width)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    for index, image in enumerate(images):  # no image depends on its neighbors
        assert torch.equal(pixels[index], processor(image).pixel_values[0])
    tokens = processor.num_visual_tokens()
    assert tokens == num_visual_tokens(height, width) == target[0] * target[1]
    assert tokens == FastVlmConfig.preset("mini").num_visual_tokens(height, width)


@pytest.mark.parametrize(("side", "tokens"), [(512, 64), (1024, 256), (1536, 576)])
def test_published_token_counts(side, tokens):
    assert FastVlmImageProcessor(image_size=side).num_visual_tokens() == tokens
    assert FastVlmImageProcessor().num_visual_tokens(side) == tokens


def test_settings_of_one_call():
    processor = FastVlmImageProcessor(image_size=128)
    wide = noise(90, 30)
    assert processor(wide, image_size=64).pixel_values.shape[-2:] == (64, 64)
    assert processor(wide, image_size=(64, 192)).pixel_values.shape[-2:] == (64, 192)
    assert processor(wide, crop_size={"height": 192, "width": 64}).pixel_values.shape[-2:] == (192, 64)
    assert processor(wide, size={"shortest_edge": 64}).pixel_values.shape[-2:] == (64, 64)
    assert not torch.equal(processor(wide, image_fit="crop").pixel_values, processor(wide).pixel_values)
    assert isinstance(processor(wide, return_tensors="np").pixel_values, np.ndarray)
    assert processor.image_size == (128, 128)
    assert processor.image_fit == "pad"


def test_nested_images_are_flattened_in_order():
    reds = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 20, 30)]
    pixels = FastVlmImageProcessor(image_size=64)([[reds[0]], [], [reds[1], reds[2]]]).pixel_values
    assert [round(float(p[0, 0, 0]) * 255) for p in pixels] == [10, 20, 30]


def test_limits_are_the_processors():
    processor = FastVlmImageProcessor(image_size=64)
    processor.image_limits = ImageLimits(max_pixels=10)
    with pytest.raises(ImageError, match="limit is 10"):
        processor(noise(4, 4))
    assert "image_limits" not in processor.to_dict()


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("size", [0, -64, 63, 100, 1000, (64, 65), (64,), (64, 64, 64), "64", 64.0, True, None, {}])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="image_size is"):
        image_size_px(size)
    if size is not None:
        with pytest.raises(ConfigError):
            FastVlmImageProcessor(image_size=64)(noise(4, 4), image_size=size)


def test_the_nearest_sizes_are_named():
    with pytest.raises(ConfigError, match="nearest are 960 and 1024"):
        FastVlmImageProcessor(image_size=1000)
    with pytest.raises(ConfigError, match="nearest are 64 and 128"):
        FastVlmImageProcessor(image_size=10)
    assert FastVlmImageProcessor(image_size=96, patch_size=32).num_visual_tokens() == 9


@pytest.mark.parametrize(
    ("settings_given", "says"),
    [
        ({"image_fit": "squash"}, "known are pad, crop, stretch"),
        ({"image_sise": 64}, "no setting 'image_sise'"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"image_mean": [0.48, 0.46, 0.41]}, "another model"),
        ({"image_std": 0.5}, "image_std"),
        ({"do_resize": False}, "do_resize"),
    ],
)
def test_settings_that_fastvlm_lacks_are_refused(settings_given, says):
    with pytest.raises(ConfigError, match=says):
        FastVlmImageProcessor(**settings_given)
    with pytest.raises(ConfigError, match=says):
        FastVlmImageProcessor(image_size=64)(noise(4, 4), **settings_given)


@pytest.mark.parametrize("nothing", [[], [[]], None, "", "missing.png"])
def test_no_image_is_an_error(nothing):
    with pytest.raises(ImageError):
        FastVlmImageProcessor(image_size=64)(nothing)


# ------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("fit", IMAGE_FITS)
@pytest.mark.parametrize("size", [64, (128, 320)])
def test_saved_and_loaded_again(tmp_path, fit, size):
    processor = FastVlmImageProcessor(image_size=size, image_fit=fit, resample=2)
    processor.save_pretrained(tmp_path)
    again = FastVlmImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert torch.equal(again(noise(50, 20)).pixel_values, processor(noise(50, 20)).pixel_values)
    changed = FastVlmImageProcessor.from_pretrained(tmp_path, image_size=192, image_fit="stretch")
    assert (changed.image_size, changed.image_fit) == ((192, 192), "stretch")


def test_a_plain_transformers_file_is_padded_at_its_own_size(tmp_path):
    """What the published third-party conversions carry: CLIP's keys and none of ours."""
    file = {
        "crop_size": {"height": 512, "width": 512},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0, 0, 0],
        "image_processor_type": "CLIPImageProcessorFast",
        "image_std": [1, 1, 1],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 512},
        "some_later_key": 7,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    processor = FastVlmImageProcessor.from_pretrained(tmp_path)
    assert (processor.image_size, processor.image_fit, processor.resample) == ((512, 512), "pad", 3)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**file, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ConfigError, match="another model"):
        FastVlmImageProcessor.from_pretrained(tmp_path)


def test_the_same_path_with_new_content_gives_new_pixels(tmp_path):
    processor = FastVlmImageProcessor(image_size=64)
    path = tmp_path / "image.png"
    values = []
    for color in ("black", "white"):
        Image.new("RGB", (8, 8), color).save(path)
        values.append(float(processor(path).pixel_values.mean()))
    assert values == [0.0, 1.0]


def test_size_and_fit_can_be_chosen_later():
    processor = FastVlmImageProcessor(image_size=256)
    processor.choose()
    assert (processor.image_size, processor.image_fit) == ((256, 256), "pad")
    processor.choose((128, 192), "crop")
    assert (processor.image_size, processor.image_fit) == ((128, 192), "crop")
    for wrong in ({"image_size": 100}, {"image_fit": "squeeze"}):
        with pytest.raises(ConfigError):
            processor.choose(**wrong)
    assert (processor.image_size, processor.image_fit) == ((128, 192), "crop")


@pytest.mark.parametrize("size", [1_000_000, (64, 64_000), 10**30])
def test_sides_are_bounded(size):
    with pytest.raises(ConfigError, match="a side has at most 4096 px"):
        FastVlmImageProcessor(image_size=size)
