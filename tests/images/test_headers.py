"""Files that cost more than their header's width and height say are refused before anything is decoded."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import RGB, png, png_chunk, tiff
from PIL import Image

from fastvlm.errors import ImageTooLargeError
from fastvlm.images import ImageLimits, open_image
from fastvlm.images.headers import check_structure, is_sane_directory


def encoded(image, format_name, **options):
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan comes again until there are `count`."""
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 40)), "JPEG", progressive=True, quality=90)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def test_scans_of_a_jpeg_are_counted_before_it_is_decoded():
    assert open_image(jpeg_of_scans(32)).size == (16, 16)
    for count in (33, 400, 5000):
        with pytest.raises(ImageTooLargeError, match="more than 32 scans"):
            open_image(jpeg_of_scans(count))
    with Image.open(io.BytesIO(jpeg_of_scans(400))) as lazy, pytest.raises(ImageTooLargeError, match="scans"):
        open_image(lazy)
    assert open_image(jpeg_of_scans(40), limits=ImageLimits(max_scans=40)).size == (16, 16)


def test_bytes_that_only_look_like_scans_are_none():
    """In a comment, in EXIF, after the end (a film, as telephones append one), in a stuffed scan."""
    data = encoded(Image.new("RGB", (16, 16)), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2000) + b"\xff\xda" * 1000
    for many in (data[:2] + comment + data[2:], data + b"\xff\xda" * 1000):
        assert open_image(many).size == (16, 16)


def test_filling_before_a_marker_hides_no_scan():
    data = jpeg_of_scans(100).replace(b"\xff\xda", b"\xff\xff\xff\xda")
    with pytest.raises(ImageTooLargeError, match="scans"):
        open_image(data)


def test_scans_of_a_jpeg_in_a_tiff_are_counted():
    inner = jpeg_of_scans(100)
    data = tiff(inner, width=16, height=16, bits=(8,) * 3, photometric=6, tags={259: (3, [7])})
    with pytest.raises(ImageTooLargeError, match="scans"):
        open_image(data)


def test_strips_of_a_tiff_that_share_a_jpeg_are_refused():
    inner = encoded(Image.new("RGB", (16, 16)), "JPEG")
    tags = {259: (3, [7]), 273: (4, [8] * 16), 278: (4, [1]), 279: (4, [len(inner)] * 16)}
    with pytest.raises(ImageTooLargeError, match="overlap"):
        open_image(tiff(inner, width=16, height=16, bits=(8,) * 3, photometric=6, tags=tags))


def test_huge_tiles_of_a_small_tiff_are_refused():
    tags = {322: (4, [65536]), 323: (4, [65536]), 324: (4, [8]), 325: (4, [1]), 259: (3, [8])}
    with pytest.raises(ImageTooLargeError, match="tiles of 65536 x 65536"):
        open_image(tiff(b"\0", width=1, bits=(8,), photometric=1, tags=tags))


def icon(inner, width=16, height=16):
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, len(inner), 22) + inner


def test_an_icon_cannot_hide_a_larger_image():
    assert open_image(icon(encoded(Image.new("RGBA", (16, 16), (1, 2, 3, 255)), "PNG"))).getpixel((3, 3)) == (1, 2, 3)
    large_png = png(RGB, 8, [0, 0, 0], width=1, size=(16_000, 10_000))
    large_bitmap = struct.pack("<IiiHHIIiiII", 40, 16_000, 20_000, 1, 32, 0, 0, 0, 0, 0, 0)
    for inner in (large_png, large_bitmap):
        with pytest.raises(ImageTooLargeError, match="16000 x 10000 = 160000000 pixels inside"):
            open_image(icon(inner))


def overlapping_directory(num_entries, length, order="<"):
    """A TIFF structure whose entries all point at the same `length` bytes."""
    first = 8 + 2 + 12 * num_entries + 4
    entries = b"".join(struct.pack(order + "HHII", 40_000 + i, 7, length, first) for i in range(num_entries))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", num_entries) + entries + bytes(4) + bytes(length)


@pytest.mark.parametrize("order", ["<", ">"])
def test_directories_that_are_read_many_times_over_are_refused(order):
    bomb = overlapping_directory(2000, 30_000, order)
    assert not is_sane_directory(bomb)
    assert is_sane_directory(overlapping_directory(1, 30_000, order))
    with pytest.raises(ImageTooLargeError, match="overlap"):
        open_image(bomb)
    small = encoded(Image.new("RGB", (4, 4), (9, 9, 9)), "JPEG")
    exif = b"Exif\0\0" + bomb[:60_000]
    with pytest.raises(ImageTooLargeError, match="overlap"):
        open_image(small[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + small[2:])


def test_a_big_tiff_is_judged_by_its_own_layout():
    count, length = 2000, 30_000
    first = 16 + 8 + 20 * count + 8
    entries = b"".join(struct.pack("<HHQQ", 40_000 + i, 7, length, first) for i in range(count))
    bomb = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, count) + entries + bytes(8) + bytes(length)
    assert not is_sane_directory(bomb)


def test_exif_of_a_png_that_is_a_bomb_turns_nothing():
    """The image is whole; what cannot be read about it does not refuse it."""
    data = png(RGB, 8, [1, 2, 3], width=1, extra=png_chunk(b"eXIf", overlapping_directory(5000, 100_000)))
    assert open_image(data).getpixel((0, 0)) == (1, 2, 3)


@given(st.binary(max_size=300), st.sampled_from([b"\xff\xd8", b"\0\0\1\0", b"II*\0", b"MM\0*", b"II+\0", b""]))
def test_any_bytes_are_judged_without_another_error(data, signature):
    try:
        check_structure(signature + data, "It", max_pixels=1000, max_scans=3)
    except ImageTooLargeError:
        assert signature
