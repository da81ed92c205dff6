"""The newest frame of a source that goes on by itself, and which frames count as new."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.images.live_frames import ChangeFilter, LatestFrame, LiveFrame

RED, BLUE = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))


def frame(number=1, image=RED, time_s=0.0):
    return LiveFrame(lambda: image, number, time_s)


def test_a_slow_consumer_gets_the_newest_frame_and_the_others_are_counted():
    is_taken, is_next = threading.Event(), threading.Event()

    def source():
        yield frame(1)
        is_taken.wait()
        for number in range(2, 1001):
            yield frame(number)
        is_next.set()

    with LatestFrame(source(), threading.Event(), stall_s=30) as newest:
        numbers = []
        for one in newest:
            numbers.append(one.number)
            is_taken.set()
            is_next.wait(30)
    assert numbers == [1, 1000]
    assert (newest.num_read, newest.num_dropped) == (1000, 998)


def test_a_dropped_frame_is_never_converted():
    converted = []
    frames = [LiveFrame(lambda number=number: converted.append(number), number) for number in range(50)]
    with LatestFrame(iter(frames), threading.Event(), stall_s=30) as newest:
        time.sleep(0.2)
        assert [one.number for one in newest if one.image is None] == [49]
    assert converted == [49]


def test_the_error_of_the_source_is_raised_after_its_last_frame():
    def source():
        yield frame()
        raise ImageError("camera:0 has broken off.")

    with LatestFrame(source(), threading.Event(), stall_s=30) as newest:
        frames = iter(newest)
        assert next(frames).number == 1
        with pytest.raises(ImageError, match="has broken off"):
            next(frames)


def test_a_source_that_gives_nothing_counts_as_broken():
    stop = threading.Event()

    def source():
        stop.wait()
        yield from ()

    with (
        pytest.raises(ImageError, match=r"No frame has come for 0.1 s"),
        LatestFrame(source(), stop, stall_s=0.1) as it,
    ):
        next(iter(it))


def test_leaving_ends_the_reader():
    stop = threading.Event()

    def source():
        while not stop.is_set():
            yield frame()

    with LatestFrame(source(), stop, stall_s=30) as newest:
        next(iter(newest))
    assert "fastvlm-frames" not in [thread.name for thread in threading.enumerate()]


@given(st.lists(st.sampled_from([RED, BLUE]), min_size=1, max_size=30))
def test_a_frame_is_new_if_it_differs_from_the_last_one_taken(images):
    changes = ChangeFilter()
    taken = [changes.takes(frame(number, image)) for number, image in enumerate(images)]
    assert taken == [index == 0 or image is not images[index - 1] for index, image in enumerate(images)]
    assert changes.num_unchanged == taken.count(False)


def test_a_slow_drift_is_noticed_because_the_last_frame_taken_is_what_counts():
    changes = ChangeFilter()
    grays = [Image.new("RGB", (8, 8), (10 * step,) * 3) for step in range(7)]
    assert [changes.takes(frame(image=gray)) for gray in grays] == [True, False, True, False, True, False, True]


def test_a_frame_too_soon_after_the_last_one_is_not_taken_and_not_compared():
    changes = ChangeFilter(every_s=1.0)
    shown = [(RED, 0.0), (BLUE, 0.5), (BLUE, 1.0), (RED, 1.9), (RED, 2.5)]
    assert [changes.takes(frame(image=image, time_s=time_s)) for image, time_s in shown] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_without_comparison_each_frame_is_new():
    changes = ChangeFilter(is_off=True)
    assert all(changes.takes(frame()) for _ in range(3))
