"""Images made ready once: the same pixels as without memory, by content and never by name."""

import base64
import io

import parrot
import pytest
import torch
from PIL import Image

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.engine.pixel_cache import DIGESTS, PixelCache
from fastvlm.errors import ImageError

SIDE_PX = 128
MEMO_BYTES = 3 * 3 * SIDE_PX * SIDE_PX * 4  # three images


class Counting(FastVlmImageProcessor):
    """An image processor that counts what it makes ready."""

    made = 0

    def preprocess(self, images, **settings):
        self.made += 1
        return super().preprocess(images, **settings)


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
        found = inputs(memo.over(processor), red, blue, red)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert torch.equal(found["input_ids"], expected["input_ids"])
        first, second, third = found[DIGESTS]
        assert first == third != second
    assert processor.image_processor.made == before + 2
    assert DIGESTS not in inputs(processor, red), "the processor itself was changed"


def test_equal_bytes_are_the_same_image_however_they_come(processor, memo, tmp_path):
    digests = {inputs(memo.over(processor), sources_of(kind, "red", tmp_path))[DIGESTS] for kind in KINDS}
    digests.add(inputs(memo.over(processor), io.BytesIO(png("red")))[DIGESTS])
    assert len(digests) == 1 and processor.image_processor.made == 1


def test_a_file_that_has_changed_is_another_image(processor, memo, tmp_path):
    file = tmp_path / "image.png"
    found = []
    for color in ("red", "blue", "red"):
        file.write_bytes(png(color))
        found.append(inputs(memo.over(processor), file))
    digests = [one[DIGESTS][0] for one in found]
    assert digests[0] == digests[2] != digests[1]
    assert not torch.equal(found[0]["pixel_values"], found[1]["pixel_values"])
    assert torch.equal(found[0]["pixel_values"], found[2]["pixel_values"])


def test_another_size_or_fit_is_another_image(processor, memo):
    data, digests = png("red"), set()
    for side, fit in ((128, "pad"), (192, "pad"), (128, "stretch"), (128, "crop")):
        processor.image_processor.image_size, processor.image_processor.image_fit = (side, side), fit
        found = inputs(memo.over(processor), data)
        assert found["pixel_values"].shape == (1, 3, side, side)
        assert torch.equal(found["pixel_values"], inputs(processor, data)["pixel_values"])
        digests.add(found[DIGESTS])
    assert len(digests) == 4


def test_what_is_no_file_is_made_anew_and_known_by_its_pixels(processor, memo):
    image = Image.new("RGB", (30, 20), "red")
    first = inputs(memo.over(processor), image)
    image.paste("blue", (0, 0, 30, 20))
    second = inputs(memo.over(processor), image)
    assert first[DIGESTS] != second[DIGESTS], "known by the object, not by what is in it"
    assert torch.equal(second["pixel_values"], inputs(processor, image)["pixel_values"])


def test_memory_is_bounded(processor, memo):
    for color in ("red", "green", "blue", "white", "black"):
        inputs(memo.over(processor), png(color))
    assert memo._pixels.num_bytes <= MEMO_BYTES and len(memo._pixels) == 3
    memo.clear()
    assert len(memo._pixels) == 0


@pytest.mark.parametrize("kind", ["damaged file", "no file", "folder", "damaged bytes", "number"])
def test_errors_are_the_processors_own(kind, processor, memo, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image at all")
    sources = {"damaged file": damaged, "no file": tmp_path / "no.png", "folder": tmp_path, "number": 7}
    source = sources.get(kind, b"no image")
    with pytest.raises(ImageError) as expected:
        inputs(processor, source)
    with pytest.raises(ImageError) as found:
        inputs(memo.over(processor), source)
    assert str(found.value) == str(expected.value)


def test_a_processor_without_images_is_left_alone(memo):
    words = object()
    assert memo.over(words) is words
