"""Frames of image files: how many, which one, and what choosing one may cost."""

import io
import struct
from contextlib import suppress

import pytest
from PIL import Image, features

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.frames import FrameLimits, Selection
from fastvlm.images.limits import ImageLimits
from fastvlm.images.multiframe import image_frames

COLORS = ("red", "green", "blue")
RGB = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
FORMATS = ["GIF", "TIFF", "WEBP", "PNG", *(["AVIF"] if features.check("avif") else [])]


def animation(format_name, colors=COLORS, size=(24, 16), **options):
    first, *others = [Image.new("RGB", size, color) for color in colors]
    file = io.BytesIO()
    first.save(file, format_name, save_all=True, append_images=others, **options)
    return file.getvalue()


def heic():
    heif = pytest.importorskip("pillow_heif")
    made = heif.from_pillow(Image.new("RGB", (64, 64), "red"))
    for color in ("green", "blue"):
        made.add_from_pillow(Image.new("RGB", (64, 64), color))
    file = io.BytesIO()
    made.save(file, quality=95)
    return file.getvalue()


def frames(data, pages=None, limits=None):
    return image_frames(data, "a file", Selection(pages), limits or FrameLimits())


@pytest.mark.parametrize("format_name", [*FORMATS, "HEIC"])
def test_each_frame_and_the_first_one_if_none_is_chosen(format_name):
    data = heic() if format_name == "HEIC" else animation(format_name)
    assert [(frame.kind, frame.number, frame.count) for frame in frames(data)] == [("image", 1, 3)]
    for number, frame in zip((3, 1, 2), frames(data, (3, 1, 2)), strict=True):
        assert frame.number == number and frame.image.mode == "RGB"
        wanted = RGB[COLORS[number - 1]]
        assert all(abs(a - b) < 9 for a, b in zip(frame.image.getpixel((5, 5)), wanted, strict=True)), number


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_frame_that_is_not_there(format_name):
    with pytest.raises(ImageError, match="has no frame 4; it has 3"):
        frames(animation(format_name), (4,))


def test_an_image_without_frames_has_one():
    file = io.BytesIO()
    Image.new("RGB", (5, 5)).save(file, "JPEG")
    assert frames(file.getvalue())[0].count == 1
    with pytest.raises(ImageError, match="has no frame 2; it has 1"):
        frames(file.getvalue(), (2,))


def test_frames_up_to_the_chosen_one_count_where_it_stands_on_them():
    limits = FrameLimits(image=ImageLimits(max_pixels=24 * 16 // 4))
    larger = FrameLimits(image=ImageLimits(max_pixels=24 * 16))
    colors = [(10 * index, 0, 0) for index in range(12)]
    with pytest.raises(ImageTooLargeError):
        frames(animation("GIF", colors), limits=limits)
    assert frames(animation("GIF", colors), (8,), larger)
    with pytest.raises(ImageTooLargeError, match="3456 pixels up to frame 9; the limit is 3072"):
        frames(animation("GIF", colors), (9,), larger)
    assert frames(animation("TIFF", colors), (9,), larger)
    with pytest.raises(ImageTooLargeError, match="asked for 17 frames; the limit is 16"):
        frames(animation("GIF"), tuple(range(1, 18)))


def test_a_larger_frame_behind_a_small_one_is_refused():
    file = io.BytesIO()
    Image.new("RGB", (5, 5)).save(file, "TIFF", save_all=True, append_images=[Image.new("RGB", (50, 50))])
    assert frames(file.getvalue())
    with pytest.raises(ImageTooLargeError, match="50 x 50 = 2500 pixels"):
        frames(file.getvalue(), (2,), FrameLimits(image=ImageLimits(max_pixels=100)))


def test_a_directory_that_points_at_itself_and_one_whose_entries_overlap():
    data = animation("TIFF", COLORS[:2])
    first = struct.unpack_from("<I", data, 4)[0]
    num_entries = struct.unpack_from("<H", data, first)[0]
    link = first + 2 + 12 * num_entries
    ring = data[:link] + struct.pack("<I", first) + data[link + 4 :]
    assert frames(ring)[0].count == 1
    entries = b"".join(struct.pack("<HHII", 700 + index, 1, len(data), 8) for index in range(60))
    bomb = data[:link] + struct.pack("<I", len(data)) + data[link + 4 :] + struct.pack("<H", 60) + entries + bytes(4)
    with pytest.raises(ImageTooLargeError, match="overlap many times"):
        frames(bomb, (2,))


def test_frames_too_many_to_count():
    many = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + bytes(6)
    block = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x03\x44\x34\x05\0"
    assert frames(many + block * 10_100 + b";")[0].count is None
    assert frames(many + block * 5 + b";")[0].count == 5


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_truncated_file_gives_an_error_or_a_frame(format_name):
    data = animation(format_name, size=(200, 100))
    for share in (0.3, 0.6, 0.9):
        for number in (1, 3):
            with suppress(ImageError):
                assert frames(data[: int(len(data) * share)], (number,))[0].image.size == (200, 100)
