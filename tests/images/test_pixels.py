"""Mode x bit depth x transparency x photometric: the values that a file states, worked out by hand and not by Pillow.

Each cell is a row of pixels and the RGB values that they must have. Channels of 16 bits may be one off: Pillow keeps
their high byte, where v * 255 / 65535 would be rounded.
"""

import io
import struct

import numpy as np
import pytest
from image_bytes import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, packed, png, pnm, tiff
from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.images import open_image


def gray(*values):
    return [(value, value, value) for value in values]


def row(source):
    image = open_image(source)
    assert image.mode == "RGB" and image.height == 1
    return [image.getpixel((x, 0)) for x in range(image.width)]


def close(found, expected, tolerance=1):
    assert len(found) == len(expected)
    assert np.abs(np.array(found) - np.array(expected)).max() <= tolerance, (found, expected)


def u16(*values):
    return struct.pack(f">{len(values)}H", *values)


# name: (bytes, expected)
PNG_CELLS = {
    "gray 1": (png(GRAY, 1, [0, 1], width=2), gray(0, 255)),
    "gray 2": (png(GRAY, 2, [0, 1, 2, 3], width=4), gray(0, 85, 170, 255)),
    "gray 4": (png(GRAY, 4, [0, 1, 8, 15], width=4), gray(0, 17, 136, 255)),
    "gray 8": (png(GRAY, 8, [0, 1, 200, 255], width=4), gray(0, 1, 200, 255)),
    "gray 16": (png(GRAY, 16, [0, 200, 257 * 99, 65535], width=4), gray(0, 1, 99, 255)),
    "gray 1, 0 clear": (png(GRAY, 1, [0, 1], width=2, trns=u16(0)), gray(255, 255)),
    "gray 1, 1 clear": (png(GRAY, 1, [0, 1], width=2, trns=u16(1)), gray(0, 255)),
    "gray 2, clear": (png(GRAY, 2, [0, 1, 2], width=3, trns=u16(1)), gray(0, 255, 170)),
    "gray 4, clear": (png(GRAY, 4, [0, 3, 8], width=3, trns=u16(8)), gray(0, 51, 255)),
    "gray 4, 3 clear": (png(GRAY, 4, [0, 3, 8], width=3, trns=u16(3)), gray(0, 255, 136)),
    "gray 8, clear": (png(GRAY, 8, [7, 8, 9], width=3, trns=u16(8)), gray(7, 255, 9)),
    "gray 16, clear": (png(GRAY, 16, [1000, 1001, 257 * 40], width=3, trns=u16(1000)), gray(255, 4, 40)),
    "rgb 8": (png(RGB, 8, [1, 2, 3, 254, 128, 0], width=2), [(1, 2, 3), (254, 128, 0)]),
    "rgb 16": (png(RGB, 16, [257, 514, 771], width=1), [(1, 2, 3)]),
    "rgb 8, clear": (png(RGB, 8, [1, 2, 3, 1, 2, 4], width=2, trns=u16(1, 2, 3)), [(255,) * 3, (1, 2, 4)]),
    "palette 1": (png(PALETTE, 1, [1, 0], width=2, plte=[9, 8, 7, 1, 2, 3]), [(1, 2, 3), (9, 8, 7)]),
    "palette 2": (png(PALETTE, 2, [2], width=1, plte=[0] * 6 + [1, 2, 3]), [(1, 2, 3)]),
    "palette 4": (png(PALETTE, 4, [2], width=1, plte=[0] * 6 + [1, 2, 3]), [(1, 2, 3)]),
    "palette 8": (png(PALETTE, 8, [2], width=1, plte=[0] * 6 + [1, 2, 3]), [(1, 2, 3)]),
    "palette 8, clear": (
        png(PALETTE, 8, [0, 1], width=2, plte=[9, 9, 9, 1, 2, 3], trns=b"\0"), [(255,) * 3, (1, 2, 3)]),
    "palette 2, half": (png(PALETTE, 2, [0, 1], width=2, plte=[0, 0, 0, 50, 100, 150], trns=b"\xff\x33"),
                        [(0, 0, 0), (214, 224, 234)]),  # 255 - 0.2 * (255 - c)
    "gray alpha 8": (png(GRAY_ALPHA, 8, [100, 255, 100, 51, 100, 0], width=3), gray(100, 224, 255)),
    "gray alpha 16": (png(GRAY_ALPHA, 16, [257 * 100, 65535, 257 * 100, 0], width=2), gray(100, 255)),
    "rgba 8": (png(RGBA, 8, [50, 100, 150, 51], width=1), [(214, 224, 234)]),
    "rgba 16": (png(RGBA, 16, [257 * 50, 257 * 100, 257 * 150, 257 * 51], width=1), [(214, 224, 234)]),
}  # fmt: skip

FILL_2 = {266: (3, [2])}
SIGNED, FLOAT = {339: (3, [2])}, {339: (3, [3])}


def extra(kind):
    return {338: (3, [kind])}


def strip(values, bits, order="<"):
    return packed(values, bits, "little" if order == "<" else "big")


COLORS_16 = [index * 257 for index in range(256)]  # a 16-bit color map entry is 257 times the 8-bit one
COLOR_MAP = {320: (3, COLORS_16 + COLORS_16[::-1] + [257 * 9] * 256)}  # index i: (i, 255 - i, 9)


def small_map(bits):
    count = 2**bits
    return {320: (3, [index * 257 for index in range(count)] + [0] * count + [65535] * count)}


TIFF_CELLS = {
    "black 1": (tiff(packed([0, 1], 1), width=2, bits=(1,), photometric=1), gray(0, 255)),
    "white 1": (tiff(packed([0, 1], 1), width=2, bits=(1,), photometric=0), gray(255, 0)),
    "black 2": (tiff(packed([0, 1, 3], 2), width=3, bits=(2,), photometric=1), gray(0, 85, 255)),
    "black 4": (tiff(packed([0, 1, 15], 4), width=3, bits=(4,), photometric=1), gray(0, 17, 255)),
    "white 4": (tiff(packed([0, 1, 15], 4), width=3, bits=(4,), photometric=0), gray(255, 238, 0)),
    "black 8": (tiff(bytes([0, 7, 255]), width=3, bits=(8,), photometric=1), gray(0, 7, 255)),
    "white 8": (tiff(bytes([0, 7, 255]), width=3, bits=(8,), photometric=0), gray(255, 248, 0)),
    "black 8, bits from the right": (
        tiff(bytes([0b10000000]), width=1, bits=(8,), photometric=1, tags=FILL_2), gray(1)),
    "black 12": (tiff(packed([0, 257, 2048, 4095], 12), width=4, bits=(12,), photometric=1), gray(0, 16, 128, 255)),
    **{
        f"{name} 16, {order}": (
            tiff(strip([0, 200, 257 * 99, 65535], 16, order), width=4, bits=(16,), photometric=kind, order=order),
            expected)
        for name, order, kind, expected in (
            ("black", "<", 1, gray(0, 1, 99, 255)),
            ("black", ">", 1, gray(0, 1, 99, 255)),
            ("white", "<", 0, gray(255, 254, 156, 0)))
    },
    "palette 4": (
        tiff(packed([0, 5], 4), width=2, bits=(4,), photometric=3, tags=small_map(4)), [(0, 0, 255), (5, 0, 255)]),
    "palette 1": (
        tiff(packed([0, 1], 1), width=2, bits=(1,), photometric=3, tags=small_map(1)), [(0, 0, 255), (1, 0, 255)]),
    "palette 8": (
        tiff(bytes([0, 200]), width=2, bits=(8,), photometric=3, tags=COLOR_MAP), [(0, 255, 9), (200, 55, 9)]),
    "rgb 8": (tiff(bytes([1, 2, 3]), width=1, bits=(8,) * 3, photometric=2), [(1, 2, 3)]),
    "rgb 8, planes": (tiff(bytes([1, 11, 2, 12, 3, 13]), width=2, bits=(8,) * 3, photometric=2, planes=3),
                      [(1, 2, 3), (11, 12, 13)]),
    "rgb 16, <": (tiff(strip([257, 514, 771], 16), width=1, bits=(16,) * 3, photometric=2), [(1, 2, 3)]),
    "rgb 16, >": (
        tiff(strip([257, 514, 771], 16, ">"), width=1, bits=(16,) * 3, photometric=2, order=">"), [(1, 2, 3)]),
    "rgb 8, unused": (tiff(bytes([1, 2, 3, 0]), width=1, bits=(8,) * 4, photometric=2, tags=extra(0)), [(1, 2, 3)]),
    "rgb 8, associated": (tiff(bytes([10, 20, 30, 51]), width=1, bits=(8,) * 4, photometric=2, tags=extra(1)),
                          [(214, 224, 234)]),  # c + 255 - a
    "rgb 8, unassociated": (tiff(bytes([50, 100, 150, 51]), width=1, bits=(8,) * 4, photometric=2, tags=extra(2)),
                            [(214, 224, 234)]),
    "rgb 16, associated": (
        tiff(strip([257 * v for v in (10, 20, 30, 51)], 16), width=1, bits=(16,) * 4, photometric=2, tags=extra(1)),
        [(214, 224, 234)]),
    "rgb 16, unassociated": (
        tiff(strip([257 * v for v in (50, 100, 150, 51)], 16), width=1, bits=(16,) * 4, photometric=2, tags=extra(2)),
        [(214, 224, 234)]),
    "rgb 8 and two more": (
        tiff(bytes([50, 100, 150, 51, 77]), width=1, bits=(8,) * 5, photometric=2, tags={338: (3, [2, 0])}),
        [(214, 224, 234)]),
    "gray 8, associated": (tiff(bytes([20, 51]), width=1, bits=(8,) * 2, photometric=1, tags=extra(1)), gray(224)),
    "gray 8, unassociated": (tiff(bytes([100, 51]), width=1, bits=(8,) * 2, photometric=1, tags=extra(2)), gray(224)),
    "gray 8, unused": (tiff(bytes([100, 51]), width=1, bits=(8,) * 2, photometric=1, tags=extra(0)), gray(100)),
    # (255 - ink) * (255 - black) / 255
    "cmyk 8": (tiff(bytes([0, 51, 255, 51]), width=1, bits=(8,) * 4, photometric=5), [(204, 163, 0)]),
    "cmyk 16": (
        tiff(strip([0, 257 * 51, 65535, 257 * 51], 16), width=1, bits=(16,) * 4, photometric=5), [(204, 163, 0)]),
    # JFIF: R = Y + 1.402 (Cr - 128), G = Y - 0.344 (Cb - 128) - 0.714 (Cr - 128), B = Y + 1.772 (Cb - 128)
    "ycbcr 8": (tiff(bytes([100, 128, 128, 100, 138, 118]), width=2, bits=(8,) * 3, photometric=6,
                     tags={530: (3, [1, 1])}), [(100, 100, 100), (86, 104, 118)]),
    # L* of 0, 50, 100 % without color: sRGB 0, 119, 255; L* 53.2, a* 80, b* 67 is sRGB's red
    "lab 8": (tiff(bytes([0, 0, 0, 128, 0, 0, 255, 0, 0]), width=3, bits=(8,) * 3, photometric=8), gray(0, 119, 255)),
}  # fmt: skip

TIFF_ERRORS = {
    "uint32": (tiff(strip([200], 32), width=1, bits=(32,), photometric=1), "range is not stated"),
    "int32": (tiff(strip([200], 32), width=1, bits=(32,), photometric=1, tags=SIGNED), "range is not stated"),
    "int16": (tiff(strip([200], 16), width=1, bits=(16,), photometric=1, tags=SIGNED), "range is not stated"),
    "int8": (tiff(bytes([200]), width=1, bits=(8,), photometric=1, tags=SIGNED), "signed samples"),
    "float32": (tiff(struct.pack("<f", 0.5), width=1, bits=(32,), photometric=1, tags=FLOAT), "range is not stated"),
    "ycbcr, less chroma": (tiff(bytes(12), width=2, height=2, bits=(8,) * 3, photometric=6), "fewer chroma"),
    "rgb 16, planes": (tiff(bytes(6), width=1, bits=(16,) * 3, photometric=2, planes=3), "separate planes of 16"),
    "rgb 12": (tiff(bytes(5), width=1, bits=(12,) * 3, photometric=2), "TIFF"),
    "rgb float": (tiff(bytes(12), width=1, bits=(32,) * 3, photometric=2, tags={339: (3, [3] * 3)}), "TIFF"),
    "cielab of 16 bits": (tiff(bytes(6), width=1, bits=(16,) * 3, photometric=8), "TIFF"),
    "white 16, >": (tiff(bytes(2), width=1, bits=(16,), photometric=0, order=">"), "TIFF"),
    "five inks": (tiff(bytes(5), width=1, bits=(8,) * 5, photometric=5), "TIFF"),
    "log luminance": (tiff(bytes(2), width=1, bits=(16,), photometric=32844), "TIFF"),
}


@pytest.mark.parametrize("cell", [*PNG_CELLS, *(f"TIFF {name}" for name in TIFF_CELLS)])
def test_pixels_of_files(cell):
    data, expected = TIFF_CELLS[cell[5:]] if cell.startswith("TIFF") else PNG_CELLS[cell]
    close(row(data), expected)
    with Image.open(io.BytesIO(data)) as lazy:  # a PIL image that is not decoded yet says the same
        close(row(lazy), expected)


@pytest.mark.parametrize("cell", TIFF_ERRORS)
def test_samples_whose_meaning_is_not_known_are_refused(cell):
    data, says = TIFF_ERRORS[cell]
    with pytest.raises(ImageError, match=says):
        open_image(data)


@pytest.mark.parametrize("color", [(1, 2, 3), (0, 0, 0), (65535, 65535, 65535)])
def test_a_transparent_color_of_16_bits_in_rgb_is_refused(color):
    """Pillow keeps 8 of the 16 bits: the color cannot be compared."""
    data = png(RGB, 16, [1, 2, 3], width=1, trns=u16(*color))
    with pytest.raises(ImageError, match="transparent color"):
        open_image(data)


def test_a_decoded_image_with_a_transparent_color_of_16_bits_is_refused():
    image = Image.new("RGB", (1, 1))
    image.info["transparency"] = (0, 0, 65535)
    with pytest.raises(ImageError, match="transparent color"):
        open_image(image)


@pytest.mark.parametrize("maxval", [1, 3, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
def test_pnm_of_every_maxval(maxval):
    values = [0, maxval // 3, maxval]
    expected = [value * 255 / maxval for value in values]
    size = 1 if maxval < 256 else 2
    body = b"".join(value.to_bytes(size, "big") for value in values)
    text = " ".join(map(str, values)).encode()
    close(row(pnm(5, 3, maxval, body)), gray(*expected))
    close(row(pnm(2, 3, maxval, text)), gray(*expected))
    close(row(pnm(6, 1, maxval, body)), [tuple(expected)])
    close(row(pnm(3, 1, maxval, text)), [tuple(expected)])


def test_bitmaps_of_pnm_have_black_ones():
    assert row(pnm(4, 2, None, bytes([0b01000000]))) == gray(255, 0)
    assert row(pnm(1, 2, None, b"0 1")) == gray(255, 0)


def filled(mode, *pixels):
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


PIL_CELLS = {
    "1": (filled("1", 0, 255), gray(0, 255)),
    "L": (filled("L", 0, 7, 255), gray(0, 7, 255)),
    "LA": (filled("LA", (100, 255), (100, 51), (100, 0)), gray(100, 224, 255)),
    "La": (Image.frombytes("La", (2, 1), bytes([100, 255, 20, 51])), gray(100, 224)),
    "RGB": (filled("RGB", (1, 2, 3)), [(1, 2, 3)]),
    "RGBA": (filled("RGBA", (50, 100, 150, 51), (1, 2, 3, 0)), [(214, 224, 234), (255, 255, 255)]),
    "RGBa": (Image.frombytes("RGBa", (1, 1), bytes([10, 20, 30, 51])), [(214, 224, 234)]),
    "RGBX": (Image.frombytes("RGBX", (1, 1), bytes([10, 20, 30, 0])), [(10, 20, 30)]),
    "CMYK": (filled("CMYK", (0, 51, 255, 51)), [(204, 163, 0)]),
    "YCbCr": (filled("YCbCr", (100, 138, 118)), [(86, 104, 118)]),
    "HSV": (filled("HSV", (0, 255, 255), (0, 0, 80), (170, 255, 255)), [(255, 0, 0), (80, 80, 80), (0, 0, 255)]),
    "LAB": (Image.frombytes("LAB", (2, 1), bytes([128, 0, 0, 255, 0, 0])), gray(119, 255)),
    "I;16": (Image.fromarray(np.array([[0, 200, 25443, 65535]], np.uint16)), gray(0, 1, 99, 255)),
    "I;16B": (Image.frombytes("I;16B", (2, 1), u16(257 * 99, 65535)), gray(99, 255)),
    "I;16L": (Image.frombytes("I;16L", (2, 1), struct.pack("<2H", 257 * 99, 65535)), gray(99, 255)),
}


def palette_image(mode, data):
    image = Image.frombytes(mode, (2, 1), data)
    image.putpalette([9, 8, 7, 50, 100, 150])
    return image


PIL_CELLS["P"] = (palette_image("P", bytes([0, 1])), [(9, 8, 7), (50, 100, 150)])
PIL_CELLS["PA"] = (palette_image("PA", bytes([0, 255, 1, 51])), [(9, 8, 7), (214, 224, 234)])


@pytest.mark.parametrize("mode", PIL_CELLS)
def test_pixels_of_pil_images(mode):
    image, expected = PIL_CELLS[mode]
    assert image.mode == mode
    close(row(image), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("value", [0, 200, 70_000])
def test_pil_modes_without_a_range_are_refused(mode, value):
    with pytest.raises(ImageError, match="range is not stated"):
        open_image(Image.new(mode, (1, 1), value))


def test_a_red_of_lab_is_red():
    """CIE L*a*b* (D50) of sRGB's red: 54.3, 80.8, 69.9."""
    data = tiff(bytes([round(54.3 * 2.55), 81, 70]), width=1, bits=(8,) * 3, photometric=8)
    close(row(data), [(255, 0, 0)], tolerance=6)


def jpeg(image, *, has_adobe_marker=True):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100)
    data = file.getvalue()
    start = data.index(b"\xff\xee")
    assert data[start + 4 : start + 9] == b"Adobe"
    return data if has_adobe_marker else data[:start] + data[start + 16 :]


@pytest.mark.parametrize("has_adobe_marker", [True, False])
def test_cmyk_jpegs_hold_inverted_inks(has_adobe_marker):
    """255 - ink is what Adobe's programs write and what Pillow and Skia read, with their marker and without it."""
    data = jpeg(Image.new("CMYK", (8, 8), (0, 51, 255, 51)), has_adobe_marker=has_adobe_marker)
    close([open_image(data).getpixel((3, 3))], [(204, 163, 0)], tolerance=2)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_libtiff_decodes_sixteen_bits_of_white_is_zero_the_same(compression):
    file = io.BytesIO()
    values = np.array([[0, 257 * 99, 65535]], np.uint16)
    Image.fromarray(values).save(file, "TIFF", compression=compression, tiffinfo={262: 0})
    close(row(file.getvalue()), gray(255, 156, 0))
