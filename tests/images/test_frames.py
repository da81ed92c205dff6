"""What is chosen of a file, and how it is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastvlm.errors import UsageError
from fastvlm.images.frames import Frame, Selection, clock, evenly, parse_pages, time_captions

IMAGE = Image.new("RGB", (1, 1))


def shot(number, time_s):
    return Frame(IMAGE, "frame", number, 99, time_s)


@pytest.mark.parametrize(
    ("text", "numbers"), [("2", (2,)), ("1-3,5", (1, 2, 3, 5)), (" 4 - 5 , 1 ", (4, 5, 1)), (7, (7,)), ([3, 1], (3, 1))]
)
def test_pages_as_typed(text, numbers):
    assert parse_pages(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "1..3", "1;2", "3-1", "1-999999", "0x1", "²"])
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError, match=r"pages is .*(expected|Choose fewer)"):
        parse_pages(text)


@pytest.mark.parametrize("wrong", [{"pages": (0,)}, {"pages": ()}, {"max_frames": 0}, {"sampling": "luck"}])
def test_a_selection_out_of_range(wrong):
    with pytest.raises(UsageError, match="expected"):
        Selection(**wrong)


@given(st.integers(0, 60), st.integers(1, 20))
def test_evenly_keeps_order_and_both_ends(length, count):
    items = list(range(length))
    kept = evenly(items, count)
    assert kept == sorted(set(kept)) and len(kept) == min(length, count)
    if count > 1 and items:
        assert kept[0] == items[0] and kept[-1] == items[-1]


def test_times_as_read():
    assert [clock(time_s) for time_s in (0, 3.54, 59.96, 61, 3600.04)] == [
        "0:00.0",
        "0:03.5",
        "1:00.0",
        "1:01.0",
        "1:00:00.0",
    ]


def test_captions_name_the_images_of_each_video():
    assert time_captions([shot(1, 0.0), shot(9, 2.5)]) == ["The images are frames of a video at 0:00.0, 0:02.5."]
    assert time_captions([shot(1, 0.0)]) == time_captions(["a.png", IMAGE, Frame(IMAGE, "page", 2, 3)]) == []
    mixed = ["a.png", shot(5, 1.0), shot(9, 2.0), shot(1, 0.0), shot(2, 0.1), IMAGE]
    assert time_captions(mixed) == [
        "Images 2 to 3 are frames of a video at 0:01.0, 0:02.0.",
        "Images 4 to 5 are frames of a video at 0:00.0, 0:00.1.",
    ]
