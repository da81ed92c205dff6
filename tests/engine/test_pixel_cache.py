"""Images made ready once: the same pixels as without memory, by content and never by name."""

import base64
import io

import parrot
import pytest
import torch
from PIL import Image

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.engine.pixel_cache import PixelCache
from fastvlm.engine.prompt_inputs import prepare
from fastvlm.errors import ImageError

SIDE_PX = 128
CONFIG = parrot.model(parrot.tokenizer()).config
MEMO_BYTES = 3 * 3 * SIDE_PX * SIDE_PX * 4  # three images


class Counting(FastVlmImageProcessor):
    """An image processor that counts what it makes ready."""

    made = 0

    def pixels(self, source):
        self.made += 1
        return super().pixels(source)


@pytest.fixture
def processor():
    return FastVlmProcessor(Counting(image_size=SIDE_PX), parrot.tokenizer())


@pytest.fixture
def memo():
    return PixelCache(MEMO_BYTES)


def png(color, size=(30, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def messages(*sources):
    items = [{"type": "image", "image": source} for source in sources]
    return [{"role": "user", "content": [*items, {"type": "text", "text": "What?"}]}]


def inputs(processor, *sources):
    return processor.apply_chat_template(
        messages(*sources), tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def prepared(memo, processor, *sources):
    """The same by way of the cache: pixels and digests."""
    return prepare(messages(*sources), processor, CONFIG, memo)


def sources_of(kind, color, folder):
    data = png(color)
    if kind == "path":
        (folder / f"{color}.png").write_bytes(data)
        return folder / f"{color}.png"
    if kind == "name":
        (folder / f"{color}.png").write_bytes(data)
        return str(folder / f"{color}.png")
    return {"bytes": data, "data uri": "data:image/png;base64," + base64.b64encode(data).decode()}[kind]


KINDS = ["path", "name", "bytes", "data uri"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_inputs_are_the_processors_own_and_made_once(kind, processor, memo, tmp_path):
    red, blue = (sources_of(kind, color, tmp_path) for color in ("red", "blue"))
    expected = inputs(processor, red, blue, red)
    before = processor.image_processor.made
    for _ in range(2):
        found = prepared(memo, processor, red, blue, red)
        assert torch.equal(found.pixel_values, expected["pixel_values"])
        assert found.token_ids == tuple(expected["input_ids"][0].tolist())
        first, second, third = found.digests
        assert first == third != second
    assert processor.image_processor.made == before + 2


def test_equal_bytes_are_the_same_image_however_they_come(processor, memo, tmp_path):
    digests = {prepared(memo, processor, sources_of(kind, "red", tmp_path)).digests for kind in KINDS}
    digests.add(prepared(memo, processor, io.BytesIO(png("red"))).digests)
    assert len(digests) == 1 and processor.image_processor.made == 1


def test_a_file_that_has_changed_is_another_image(processor, memo, tmp_path):
    file = tmp_path / "image.png"
    found = []
    for color in ("red", "blue", "red"):
        file.write_bytes(png(color))
        found.append(prepared(memo, processor, file))
    first, second, third = found
    assert first.digests == third.digests != second.digests
    assert not torch.equal(first.pixel_values, second.pixel_values)
    assert torch.equal(first.pixel_values, third.pixel_values)


def test_another_size_or_fit_is_another_image(processor, memo):
    data, digests = png("red"), set()
    for side, fit in ((128, "pad"), (192, "pad"), (128, "stretch"), (128, "crop")):
        processor.image_processor.image_size, processor.image_processor.image_fit = (side, side), fit
        found = prepared(memo, processor, data)
        assert found.pixel_values.shape == (1, 3, side, side)
        assert torch.equal(found.pixel_values, inputs(processor, data)["pixel_values"])
        digests.add(found.digests)
    assert len(digests) == 4


def test_what_is_no_file_is_made_anew_and_known_by_its_pixels(processor, memo):
    image = Image.new("RGB", (30, 20), "red")
    first = prepared(memo, processor, image)
    image.paste("blue", (0, 0, 30, 20))
    second = prepared(memo, processor, image)
    assert first.digests != second.digests, "known by the object, not by what is in it"
    assert torch.equal(second.pixel_values, inputs(processor, image)["pixel_values"])


def test_memory_is_bounded(processor, memo):
    for color in ("red", "green", "blue", "white", "black"):
        prepared(memo, processor, png(color))
    assert memo.num_bytes <= MEMO_BYTES and len(memo) == 3
    memo.clear()
    assert len(memo) == 0


@pytest.mark.parametrize("kind", ["damaged file", "no file", "folder", "damaged bytes", "number"])
def test_errors_are_the_processors_own(kind, processor, memo, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image at all")
    sources = {"damaged file": damaged, "no file": tmp_path / "no.png", "folder": tmp_path, "number": 7}
    source = sources.get(kind, b"no image")
    with pytest.raises(ImageError) as expected:
        inputs(processor, source)
    with pytest.raises(ImageError) as found:
        prepared(memo, processor, source)
    assert str(found.value) == str(expected.value)
