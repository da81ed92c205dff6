"""Our files in plain transformers, and our arithmetic against its own: same ids, same pixels."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen2_format import small_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessorPil, LlavaProcessor

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.errors import ImageTokenMismatchError

ONE_STEP = 1 / 255 + 1e-6
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


def clip(side):
    """transformers' PIL backend with the settings of a fast_vlm checkpoint."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        resample=3,
    )


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width, height):
    """An image like a photograph: little noise on slow colors."""
    small = noise(7, 5, seed=3).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(small, noise(width, height, seed=4), 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    FastVlmProcessor(FastVlmImageProcessor(image_size=128), small_tokenizer()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return FastVlmProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoProcessor.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ crop


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 3), st.integers(0, 99))
def test_crop_is_bit_equal_to_the_pil_backend(width, height, multiple, seed):
    image = noise(width, height, seed)
    expected = clip(64 * multiple)(image, return_tensors="np").pixel_values
    pixels = FastVlmImageProcessor(image_size=64 * multiple, image_fit="crop")(image, return_tensors="np").pixel_values
    assert pixels.dtype == expected.dtype == np.float32
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 1000), (1024, 1024), (2000, 1999)])
def test_crop_is_bit_equal_at_the_published_size(size):
    image = smooth(*size)
    expected = clip(1024)(image, return_tensors="np").pixel_values
    pixels = FastVlmImageProcessor(image_fit="crop")(image, return_tensors="np").pixel_values
    assert np.array_equal(pixels, expected)


@pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed")
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1024, 1024), (90, 60)])
def test_crop_is_within_one_step_of_the_default_backend(folder, size):
    default = AutoImageProcessor.from_pretrained(folder)
    assert type(default).__name__ == "CLIPImageProcessor"
    image = smooth(*size)
    expected = default(image, return_tensors="pt").pixel_values
    pixels = FastVlmImageProcessor(image_size=128, image_fit="crop")(image).pixel_values
    assert (pixels - expected).abs().max() <= ONE_STEP


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_other_modes_are_as_transformers_has_them(mode):
    image = noise(64, 64).convert(mode)
    if mode in {"RGBA", "LA"}:
        image.putalpha(noise(64, 64, seed=1).convert("L"))
    expected = clip(64)(image, return_tensors="np").pixel_values
    pixels = FastVlmImageProcessor(image_size=64)(image, return_tensors="np").pixel_values
    has_no_alpha_there = np.array_equal(
        expected, clip(64)(image.convert("RGB"), return_tensors="np").pixel_values
    )  # transformers before 5.20 or so drops alpha, later it composites on white, as we do
    if mode in {"RGBA", "LA"} and has_no_alpha_there:
        pytest.skip("this transformers drops alpha instead of compositing on white")
    assert np.abs(pixels - expected).max() <= ONE_STEP


# ------------------------------------------------------------------------------------------------------ saved folder


def test_plain_transformers_opens_the_folder(theirs, ours):
    assert isinstance(theirs, LlavaProcessor)
    assert type(theirs.image_processor).__name__.startswith("CLIPImageProcessor")
    assert theirs.patch_size == 64
    assert theirs.num_additional_image_tokens == 0
    assert theirs.image_token_id == ours.image_token_id
    assert theirs.chat_template == ours.chat_template
    assert theirs.tokenizer.padding_side == "left"
    vocabulary_tokens = theirs._get_num_multimodal_tokens([(10, 10), (7, 9)])
    assert vocabulary_tokens == ours._get_num_multimodal_tokens([(10, 10), (7, 9)])


CONVERSATIONS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown in this image?"}]}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]}],
    [{"role": "user", "content": [{"type": "text", "text": "No image"}]}],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ],
]


def with_images(conversation):
    """The same conversation with a square image in every place."""
    filled, seed = [], 10
    for message in conversation:
        items = []
        for item in message["content"]:
            seed += 1
            items.append({**item, "image": noise(128, 128, seed)} if item["type"] == "image" else item)
        filled.append({**message, "content": items})
    return filled


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["image", "two images", "text", "turns"])
@pytest.mark.parametrize("template", [None, "transformers"])
def test_same_ids_and_same_pixels(ours, theirs, conversation, template):
    from fastvlm.processing.prompt import CHAT_TEMPLATES

    def call(processor, chat_template):
        return processor.apply_chat_template(
            with_images(conversation),
            chat_template=chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    a = call(ours, template)
    b = call(theirs, template and CHAT_TEMPLATES[template])
    assert torch.equal(a["input_ids"], b["input_ids"])
    assert torch.equal(a["attention_mask"], b["attention_mask"])
    assert ("pixel_values" in a) == ("pixel_values" in b)
    if "pixel_values" in a:
        assert a["pixel_values"].shape == b["pixel_values"].shape
        assert (a["pixel_values"] - b["pixel_values"]).abs().max() <= ONE_STEP


def test_a_batch_has_the_same_ids(ours, theirs):
    batch = [with_images(conversation) for conversation in CONVERSATIONS[:1] + CONVERSATIONS[3:]]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    a = ours.apply_chat_template(batch, padding=True, **options)
    b = theirs.apply_chat_template(batch, processor_kwargs={"padding": True}, **options)
    assert torch.equal(a["input_ids"], b["input_ids"])
    assert torch.equal(a["attention_mask"], b["attention_mask"])


@pytest.mark.parametrize("size", [(128, 128), (200, 200), (64, 64), (1, 1)])
def test_square_images_have_the_same_pixels(ours, theirs, size):
    image = smooth(*size)
    a = ours(images=image, text="<image>\na", return_tensors="pt")
    b = theirs(images=image, text="<image>\na", return_tensors="pt")
    assert torch.equal(a["input_ids"], b["input_ids"])
    assert (a["pixel_values"] - b["pixel_values"]).abs().max() <= ONE_STEP


def test_transformers_saves_our_keys_along(theirs, tmp_path):
    """Opened and saved by plain transformers, a folder still says how its images are fitted."""
    theirs.save_pretrained(tmp_path)
    again = FastVlmProcessor.from_pretrained(tmp_path)
    assert again.image_processor.image_fit == "pad"
    assert again.image_processor.image_size == (128, 128)
    assert again.chat_template == theirs.chat_template


# ------------------------------------------------------------------------------------------------------ where we differ


def test_wide_images_keep_their_sides(ours, theirs):
    """The reason for `pad`: transformers cuts the sides off without a word."""
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((255, 0, 0), (0, 0, 60, 100))
    a = ours(images=wide, return_tensors="pt")["pixel_values"]
    b = theirs.image_processor(wide, return_tensors="pt")["pixel_values"]
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert ((a - red).abs().sum(1) < 0.1).any()
    assert not ((b - red).abs().sum(1) < 0.1).any()


def test_images_are_counted_per_sample(ours, theirs):
    """Two places and none, one image each: the totals agree, the samples do not."""
    texts, images = ["<image><image>", "a"], [[noise(8, 8)], [noise(8, 8)]]
    theirs(images=images, text=texts)  # passes
    with pytest.raises(ImageTokenMismatchError, match="prompt 0 has 2 <image> and 1"):
        ours(images=images, text=texts)
