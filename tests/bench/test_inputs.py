"""Inputs are the same for everybody, and as long as they should be."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastvlm.bench.inputs import long_question, photo_jpeg


def test_the_image_is_a_jpeg_of_that_size_and_always_the_same():
    data = photo_jpeg(320, 200)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size, image.mode) == ("JPEG", (320, 200), "RGB")
    assert data == photo_jpeg(320, 200)
    assert data != photo_jpeg(320, 200, seed=1)


def test_the_image_has_the_entropy_of_a_photograph():
    bits_per_pixel = 8 * len(photo_jpeg(640, 480)) / (640 * 480)
    assert 1 < bits_per_pixel < 6
    colors = Image.open(io.BytesIO(photo_jpeg(640, 480))).getextrema()
    assert all(high - low > 60 for low, high in colors)


@settings(deadline=None)
@given(st.integers(1, 600), st.integers(0, 9), st.integers(1, 3), st.integers(0, 40))
def test_a_question_is_just_long_enough(wanted, seed, tokens_a_word, around):
    def count(text):
        return around + tokens_a_word * len(text.split())

    question = long_question(count, wanted, seed)
    assert wanted <= count(question) < max(wanted + tokens_a_word, count("one") + 1)
    assert question == long_question(count, wanted, seed)
    assert question.split()[0] == str(seed)
