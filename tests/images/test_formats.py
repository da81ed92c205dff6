"""Formats that are read depend on what is installed; errors say what is true here."""

import io
import subprocess
import sys

import pytest
from PIL import Image, features

from fastvlm.errors import ImageError
from fastvlm.images import ImageLimits, open_image
from fastvlm.images.formats import FORMATS, readable_formats

RED = (200, 30, 40)
FTYP = b"\0\0\0\x1cftyp"


def heic(size=(64, 48)):
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", size, RED)).save(file, quality=95)
    return file.getvalue()


def test_a_heic_image_is_read_and_nothing_is_registered():
    before = set(Image.OPEN)
    image = open_image(heic())
    assert image.size == (64, 48)
    assert all(abs(a - b) <= 4 for a, b in zip(image.getpixel((9, 9)), RED, strict=True))
    Image.init()
    assert "HEIF" not in Image.OPEN and "HEIF" not in before
    assert "HEIF" in readable_formats()


def test_the_pixels_of_a_heic_image_are_limited():
    with pytest.raises(ImageError, match="limit is 3071"):
        open_image(heic(), limits=ImageLimits(max_pixels=3071))


def test_a_damaged_heic_image_is_refused():
    data = heic()
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            open_image(data[: int(len(data) * share)])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_image_is_read():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), RED).save(file, "AVIF", quality=90)
    assert all(abs(a - b) <= 4 for a, b in zip(open_image(file.getvalue()).getpixel((9, 9)), RED, strict=True))
    assert "AVIF" in readable_formats()


def test_all_other_formats_are_readable():
    assert set(FORMATS) - set(readable_formats()) <= {"AVIF", "HEIF"}


@pytest.mark.parametrize(
    ("brand", "hidden", "says"),
    [
        (b"heic", "pillow_heif", "pip install 'fastvlm[heif]'"),
        (b"mif1", "pillow_heif", "pip install 'fastvlm[heif]'"),
        (b"avif", "PIL._avif", "pillow>=11.3"),
    ],
)
def test_what_is_not_installed_is_named_and_not_listed(brand, hidden, says):
    """In a process where the package is not there."""
    program = (
        "import importlib.util as util, sys\n"
        f"sys.modules[{hidden!r}] = None\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name, *rest: None if name == {hidden!r} else find(name, *rest)\n"
        "from fastvlm.images import open_image\n"
        f"for data in ({FTYP + brand + bytes(16)!r}, b'nothing known'):\n"
        "    try:\n"
        "        open_image(data)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    named, listed = done.stdout.splitlines()
    assert says in named
    name = {"pillow_heif": "HEIF", "PIL._avif": "AVIF"}[hidden]
    assert name not in listed and "PNG" in listed
