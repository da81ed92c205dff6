"""Frames of videos: the rule by which they are chosen, and what is refused."""

import struct
from fractions import Fraction

import pytest
from media_files import disk, sound, video
from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.frames import FrameLimits, Selection
from fastvlm.images.limits import ImageLimits
from fastvlm.images.signatures import media_kind
from fastvlm.images.video import has_changed, video_frames

LIMITS = FrameLimits()
COLORS = ("red", "blue", "green")


def frames(data, limits=LIMITS, **selection):
    return video_frames(data, "clip", Selection(**selection), limits)


def color(frame):
    """Which of red, green and blue the middle of a frame is."""
    middle = frame.image.getpixel((frame.image.width // 2, frame.image.height // 2))
    return ("red", "green", "blue")[middle.index(max(middle))]


def test_one_frame_for_each_scene():
    """Three seconds; four times eight parts, so the first candidate after each change is the frame of the change."""
    found = frames(video([disk(one) for one in COLORS]))
    assert [color(frame) for frame in found] == list(COLORS)
    assert [(frame.kind, frame.number, frame.count, frame.time_s) for frame in found] == [
        ("frame", 1, 30, 0.0),
        ("frame", 11, 30, 1.0),
        ("frame", 21, 30, 2.0),
    ]


def test_a_video_in_which_nothing_happens_is_one_frame_and_by_time_several():
    still = video([disk("red")], each=40)
    assert len(frames(still)) == 1
    assert [frame.time_s for frame in frames(still, sampling="time", max_frames=4)] == [0.5, 1.5, 2.5, 3.5]


def test_of_more_changes_than_wanted_the_first_the_last_and_between():
    busy = video([disk(COLORS[index % 3]) for index in range(8)], each=5)
    found = frames(busy, max_frames=3)
    assert len(found) == 3
    times = [frame.time_s for frame in found]
    assert (
        times[0] == pytest.approx(0.1, abs=0.11) and times[-1] == pytest.approx(3.7, abs=0.3) and times == sorted(times)
    )


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("matroska", "libx264", None),
        ("webm", "libvpx", None),
        ("avi", "mpeg4", None),
        ("mpegts", "mpeg2video", None),
        ("mov", "mjpeg", None),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_other_containers_and_codecs(container, codec, options):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = video(
        [disk(one) for one in COLORS], fps=25, container=container, codec=codec, options=options, pix_fmt=pix_fmt
    )
    assert media_kind(data[:1024]) == "video"
    assert [color(frame) for frame in frames(data)] == list(COLORS)


def test_the_time_counts_from_the_first_frame_whatever_the_header_says():
    data = video([disk("red"), disk("blue")], container="mpegts", codec="mpeg2video", fps=25)  # begins at 1.4 s
    assert [round(frame.time_s, 2) for frame in frames(data)] == [0.0, 0.4]


def test_a_frame_larger_than_the_limit_is_reduced_and_keeps_its_shape():
    (frame,) = frames(video([disk("red", (320, 160))]), FrameLimits(max_side_px=64))
    assert frame.image.size == (64, 32)


def test_a_video_taken_upright_is_seen_upright():
    """The matrix of ISO/IEC 14496-12, 8.3.2: a quarter turn clockwise, as phones write it."""
    image = Image.new("RGB", (160, 120), "blue")
    image.paste("red", (0, 0, 80, 120))  # the left half, which the turn brings up
    data = video([image], each=3)
    place = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, place)[:5] == (65536, 0, 0, 0, 65536)
    turned = data[:place] + struct.pack(">5i", 0, 65536, 0, -65536, 0) + data[place + 20 :]
    (frame,) = frames(turned)
    assert frame.image.size == (120, 160)
    assert frame.image.getpixel((60, 20))[0] > 200 and frame.image.getpixel((60, 140))[2] > 200


def test_pixels_that_are_not_square_are_made_so():
    data = video([disk("red")], each=3, aspect=Fraction(2, 1))
    assert frames(data)[0].image.size == (320, 120)
    assert frames(data, FrameLimits(max_side_px=80))[0].image.size == (80, 30)


def test_a_very_long_video_costs_only_a_few_frames():
    """An hour at one frame a second; decoding starts at key frames."""
    found = frames(video([disk(one, (32, 32)) for one in COLORS], fps=1, each=1200))
    assert [color(frame) for frame in found] == list(COLORS) and found[-1].time_s > 2400
    with pytest.raises(ImageTooLargeError, match="more than 99 frames"):
        frames(video([disk("red", (32, 32))], each=100), FrameLimits(max_packets=99))


def test_more_pixels_than_the_limit_are_refused_before_decoding():
    with pytest.raises(ImageTooLargeError, match="160 x 120 = 19200 pixels; the limit is 9999"):
        frames(video([disk("red")]), FrameLimits(image=ImageLimits(max_pixels=9999)))


def test_what_is_damaged_or_has_no_frames_is_refused():
    whole = video([disk(one) for one in COLORS], options={"movflags": "faststart"})
    for data, says in (
        (sound(), "has no video in it, only audio"),
        (video([disk("red")], each=0), "damaged|without frames|no video"),
        (video([disk("red")])[:-200], "truncated|without frames"),
        (whole[: len(whole) * 3 // 4], "truncated"),
        (whole[:40], "truncated|without frames|no video"),
        (video([disk("red")], codec="ffv1", container="matroska")[:500], "damaged|without frames"),
        (video([disk("red", (64, 64))], codec="flv1", container="avi"), "is encoded as flv1; expected one of h264"),
    ):
        with pytest.raises(ImageError, match=says):
            frames(data)


def test_what_counts_as_a_change():
    plain, size = disk("red"), (160, 120)
    assert not has_changed(plain, plain)
    assert has_changed(plain, disk("blue"))
    assert has_changed(plain, disk("red", (80, 60)))
    spot = plain.copy()
    spot.paste((0, 0, 0), (0, 0, 5, 4))  # one cell of 32 x 32
    assert has_changed(plain, spot)
    fainter = plain.point(lambda value: max(0, value - 16))
    assert fainter.size == size and not has_changed(plain, fainter)
