"""Questions to the shipped mini whose right answers stand on a page or in a frame."""

import pytest
from media_files import pdf, video
from PIL import Image

from fastvlm import FastVLM, open_frames
from fastvlm.api import user_message


@pytest.fixture(scope="module")
def model():
    with FastVLM("mini", num_slots=1) as opened:
        yield opened


def picture(name):
    with Image.open(f"examples/{name}.png") as image:
        return image.convert("RGB")


def test_a_word_on_a_page(model):
    document = pdf(["OAK", "CAT"])
    assert [model.ask(open_frames(document, pages=number), "What does it say?") for number in (1, 2)] == ["OAK", "CAT"]


def test_a_shape_in_a_video(model):
    frames = open_frames(video([picture("red_star")], each=20))
    assert len(frames) == 1
    assert model.ask(frames, "What shape is this?") == "It is a star."


def test_the_times_of_frames_stand_between_images_and_question():
    frames = open_frames(video([picture("red_star"), picture("red_star").rotate(90).point(lambda v: 255 - v)]))
    *images, caption, question = user_message(frames, "What changes?")["content"]
    assert [item["image"].size for item in images] == [(256, 256)] * 2
    assert caption == {"type": "text", "text": "The images are frames of a video at 0:00.0, 0:01.0."}
    assert question == {"type": "text", "text": "What changes?"}
