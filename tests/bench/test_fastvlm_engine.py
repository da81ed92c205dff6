"""Our own contestant with quantized weights, in this process."""

import pytest

from fastvlm.bench.fastvlm_engine import FastVlmEngine
from fastvlm.bench.inputs import photo_jpeg
from fastvlm.errors import MeasurementError


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    file = tmp_path_factory.mktemp("image") / "photo.jpg"
    file.write_bytes(photo_jpeg(128, 128))
    return str(file)


@pytest.mark.parametrize("bits", [16, 8])
def test_a_reply_is_as_long_as_asked_for_whatever_the_bits(endless, bits):
    contestant = FastVlmEngine(str(endless), "float32", bits, num_slots=2)
    assert contestant.open().value > 0
    measured = contestant.throughput(2, 6, 40)
    assert measured.facts["tokens"] == len(measured.check) == 6 and measured.value > 0


def test_an_encoder_in_8_bits_has_nearly_the_same_features(endless):
    precise, rounded = (FastVlmEngine(str(endless), "float32", encoder_bits=bits) for bits in (16, 8))
    assert precise.open().facts["kernels"] == rounded.open().facts["kernels"]
    checks = [contestant.encode(128).check for contestant in (precise, rounded)]
    assert checks[0] != checks[1]


def test_kernels_that_are_asked_for_and_not_built_are_not_measured(endless, monkeypatch):
    monkeypatch.setenv("FASTVLM_KERNELS", "avx2")
    monkeypatch.setattr("fastvlm.bench.fastvlm_engine.all_kernels", lambda: ())
    with pytest.raises(MeasurementError, match="'avx2', but 'torch' would be measured"):
        FastVlmEngine(str(endless), "float32").open()
    monkeypatch.setenv("FASTVLM_KERNELS", "torch")
    assert FastVlmEngine(str(endless), "float32").open().facts["kernels"] == "torch"


def test_more_streams_than_slots_are_too_short_to_measure(endless):
    contestant = FastVlmEngine(str(endless), "float32", num_slots=1)
    contestant.open()
    with pytest.raises(ValueError, match="too short"):
        contestant.throughput(3, 3, 40)


def test_nothing_is_known_of_the_image_at_a_first_question(endless, image, monkeypatch):
    contestant = FastVlmEngine(str(endless), "float32")
    contestant.open()
    encoded = []
    backend = contestant.engine.backend
    images = backend.images
    monkeypatch.setattr(backend, "encode", lambda pixels: encoded.append(pixels.shape) or images(pixels))
    for _ in range(2):
        contestant.ttft(image, 128)
    assert len(encoded) == 2
    contestant.second_question(image, 128)
    assert len(encoded) == 3, "the second question encodes nothing"
    contestant.ttft(image, 192)
    assert encoded[-1][-2:] == (192, 192)
