"""Everything that may hold an image, and everything that only seems to: real files, a real server, no stand-ins."""

import base64
import contextlib
import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fastvlm.errors import FastVlmError, ImageError
from fastvlm.images import ALPHA_BACKGROUND, ImageLimits, encoded_bytes, open_image

QUADRANTS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]  # top row, bottom row


def quadrants(width=40, height=20, mode="RGB"):
    """Red, green / blue, white: every turn and flip of it is another image."""
    image = Image.new("RGB", (width, height))
    for row in range(2):
        for column in range(2):
            box = (column * width // 2, row * height // 2, (column + 1) * width // 2, (row + 1) * height // 2)
            image.paste(QUADRANTS[row][column], box)
    return image.convert(mode)


def encoded(image, format_name="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def corners(image):
    """Top left, top right, bottom left, bottom right."""
    w, h = image.size
    return [image.getpixel(at) for at in ((1, 1), (w - 2, 1), (1, h - 2), (w - 2, h - 2))]


def near(color, expected, tolerance=3):
    return all(abs(a - b) <= tolerance for a, b in zip(color, expected, strict=True))


def png_claiming(width, height):
    """A PNG of a few bytes whose header says it is huge."""

    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------------------------------ sources


def every_source(tmp_path):
    data = encoded(quadrants())
    path = tmp_path / "image.png"
    path.write_bytes(data)
    array = np.asarray(quadrants())
    return {
        "str path": str(path),
        "Path": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file": io.BytesIO(data),
        "base64 data URI": "data:image/png;base64," + base64.b64encode(data).decode(),
        "data URI without a type": "data:;base64," + base64.b64encode(data).decode(),
        "broken into lines": "data:image/png;base64," + base64.encodebytes(data).decode(),
        "percent data URI": "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
        "PIL": quadrants(),
        "PIL, lazy": Image.open(io.BytesIO(data)),
        "HWC": array,
        "CHW": array.transpose(2, 0, 1),
        "HWC, floats": array / 255.0,
        "CHW, float16": (array.transpose(2, 0, 1) / 255.0).astype(np.float16),
        "not contiguous": np.asarray(quadrants(width=80).resize((80, 20), 0))[:, ::2],
        "torch": torch.from_numpy(array.copy()),
        "torch CHW float": torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
        "torch bfloat16, with gradient": (torch.from_numpy(array.copy()) / 255).bfloat16().requires_grad_(),
        "uint16": array.astype(np.uint16) * 257,
    }


def test_every_source_gives_the_same_image(tmp_path):
    for name, source in every_source(tmp_path).items():
        image = open_image(source)
        assert image.mode == "RGB", name
        assert image.size == (40, 20), name
        assert np.array_equal(np.asarray(image), np.asarray(quadrants())), name


def test_an_open_file_is_read_from_where_it_stands_and_left_open(tmp_path):
    path = tmp_path / "two.bin"
    path.write_bytes(b"skip" + encoded(quadrants()))
    with path.open("rb") as file:
        file.read(4)
        assert open_image(file).size == (40, 20)
        assert not file.closed


def test_an_rgb_image_is_not_copied_and_never_changed():
    given_image = quadrants()
    assert open_image(given_image) is given_image
    palette = quadrants().convert("P")
    before = palette.tobytes()
    open_image(palette)
    assert palette.mode == "P"
    assert palette.tobytes() == before


def test_the_same_path_with_new_content_gives_the_new_image(tmp_path):
    path = tmp_path / "image.png"
    for color in ((255, 0, 0), (0, 255, 0)):
        Image.new("RGB", (8, 8), color).save(path)
        stamp = 1_700_000_000  # the same time, so that no cache by name and date could notice
        os.utime(path, (stamp, stamp))
        assert open_image(path).getpixel((0, 0)) == color


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO"])
def test_formats(format_name):
    image = open_image(encoded(quadrants(64, 64), format_name))
    assert image.mode == "RGB"
    assert near(image.getpixel((2, 2)), (255, 0, 0), 6)


# ------------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """Store the image turned the other way round; the tag says how to turn it back."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quadrants() if orientation == 1 else quadrants().transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format_name in ("PNG", "JPEG", "WEBP", "TIFF"):
        options = {"lossless": True} if format_name == "WEBP" else {"quality": 95} if format_name == "JPEG" else {}
        image = open_image(encoded(stored, format_name, exif=exif, **options))
        assert image.size == (40, 20), format_name
        expected = [*QUADRANTS[0], *QUADRANTS[1]]
        assert all(near(a, b, 12) for a, b in zip(corners(image), expected, strict=True)), format_name


def test_unreadable_exif_leaves_the_image_as_it_is():
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on the EXIF; that is not what is asked here
        assert open_image(data).size == (40, 20)


def test_transparency_shows_the_stated_background():
    assert ALPHA_BACKGROUND == (255, 255, 255)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert open_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert near(open_image(half).getpixel((0, 0)), (127, 127, 127), 1)
    gray = Image.new("LA", (4, 4), (10, 0))
    assert open_image(encoded(gray)).getpixel((0, 0)) == (255, 255, 255)
    rgba = np.zeros((5, 6, 4), np.uint8)
    assert open_image(rgba).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])], ids=["index", "bytes"])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (2, 0, 4, 2))
    image = open_image(encoded(image, "PNG", transparency=transparency))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((3, 0)) == (0, 0, 200)


def test_a_transparent_color_in_rgb_is_transparent():
    data = encoded(quadrants(), "PNG", transparency=(255, 0, 0))
    assert open_image(data).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(format_name):
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    image = open_image(encoded(Image.fromarray(ramp), format_name))
    expected = np.rint(ramp.astype(float) * 255 / 65535)
    assert np.abs(np.asarray(image)[..., 0].astype(float) - expected).max() <= 1
    assert len(np.unique(np.asarray(image))) > 200  # Pillow's own conversion leaves one


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "RGBX", "La", "RGBa", "PA"])
def test_every_mode_becomes_rgb(mode):
    source = quadrants().convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    image = open_image(source.convert(mode))
    assert image.mode == "RGB"
    assert near(image.getpixel((38, 18)), (255, 255, 255))


def test_cmyk_jpeg():
    image = open_image(encoded(quadrants(64, 64).convert("CMYK"), "JPEG", quality=95))
    assert near(image.getpixel((4, 4)), (254, 0, 0), 8)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format_name):
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    assert near(open_image(data).getpixel((3, 3)), (255, 0, 0))


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255)])
def test_extreme_shapes_and_colors(size, color):
    image = open_image(encoded(Image.new("RGB", size, color)))
    assert image.size == size
    assert image.getextrema() == tuple((value, value) for value in color)


# ------------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4,), np.uint8), "1 axes"),
        (np.zeros((2, 8, 8, 3), np.uint8), "batch"),
        (np.zeros((3, 8, 3), np.uint8), "HxWxC or CxHxW"),
        (np.zeros((8, 8, 8), np.uint8), "no axis of 1, 3 or 4"),
        (np.full((8, 8, 3), 200.0), "lie in"),
        (np.full((8, 8, 3), -0.5), "lie in"),
        (np.full((8, 8, 3), np.nan), "lie in"),
        (np.full((8, 8, 3), np.inf), "lie in"),
        (np.zeros((8, 8, 3), np.int64), "range that is certain"),
        (np.zeros((8, 8, 3), complex), "range that is certain"),
        (np.full((8, 8), "x"), "range that is certain"),
    ],
)
def test_ambiguous_arrays_are_refused(array, says):
    with pytest.raises(ImageError, match=says):
        open_image(array)


def test_boolean_and_grayscale_arrays():
    mask = np.array([[True, False]])
    assert list(np.asarray(open_image(mask))[0, :, 0]) == [255, 0]
    gray = np.array([[7, 9, 5, 6, 2]] * 2, np.uint8)
    for array in (gray, gray[..., None], gray[None]):
        assert open_image(array).getpixel((1, 0)) == (9, 9, 9)


@given(
    shape=st.tuples(*[st.integers(0, 9)] * 3),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.bool_]),
    value=st.floats(-2, 300, allow_nan=False),
)
def test_any_array_is_an_image_or_a_clear_error(shape, dtype, value):
    with np.errstate(invalid="ignore"):
        array = np.full(shape, value if dtype == np.float32 else abs(int(value)) % 256).astype(dtype)
    image = None
    with contextlib.suppress(ImageError):
        image = open_image(array)
    if image is None:
        channels = [axis for axis in (shape[0], shape[2]) if axis in (1, 3, 4)]
        is_out_of_range = dtype == np.float32 and not 0 <= array.flat[0] <= 1 if array.size else True
        assert array.size == 0 or len(channels) != 1 or dtype == np.int16 or is_out_of_range
    else:
        assert image.mode == "RGB"
        assert image.width * image.height in (array.size, array.size // 3, array.size // 4)


# ------------------------------------------------------------------------------------------------------ not an image


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image that can be opened"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image that can be opened"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be opened"),
        ("", "not a regular file|no file"),
        ("no/such/file.png", "There is no file"),
        ("zero\0byte.png", "."),
        ("x" * 5000, "."),
        ("file:///etc/passwd", "not an http or https URL"),
        ("ftp://host/image.png", "not an http or https URL"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,%%%%", "not valid base64"),
        ("data:image/png;base64,iVBORw0K", "not an image"),
        (None, "NoneType"),
        (7, "int"),
        ([b""], "list"),
        ({}, "dict"),
        (io.StringIO("text"), "bytes"),
    ],
)
def test_what_is_no_image_is_refused_by_name(source, says):
    with pytest.raises(ImageError, match=says) as caught:
        open_image(source)
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value, FastVlmError)
    assert isinstance(caught.value, ValueError)


def test_folders_devices_and_closed_files(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ImageError, match="not a regular file"):
            open_image(path)
    file = io.BytesIO(b"x")
    file.close()
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(file)


def test_a_long_data_uri_is_named_briefly():
    with pytest.raises(ImageError) as caught:
        open_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 400
    assert "characters" in str(caught.value)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_truncated_files_are_refused(format_name):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), format_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for share in (0.02, 0.3, 0.6, 0.9):
            with pytest.raises(ImageError):
                open_image(data[: int(len(data) * share)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), format_name=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO"]))
def test_damaged_bytes_give_an_image_or_an_image_error(data, format_name):
    original = bytearray(encoded(quadrants(16, 16), format_name))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImageError):
            assert open_image(bytes(original), limits=ImageLimits(max_pixels=10**6)).mode == "RGB"


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImageError):
            assert open_image(data, limits=ImageLimits(max_pixels=10**6)).mode == "RGB"


# ------------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 12_000), (2**31 - 1, 2**31 - 1), (400_000_000, 1)])
def test_decompression_bombs_are_refused_by_their_header(size):
    """Warnings are errors here, so Pillow's own DecompressionBombWarning would show as another exception."""
    with pytest.raises(ImageError, match=r"limit is 120000000|no image"):
        open_image(png_claiming(*size))


def test_images_that_pillow_would_warn_of_open_without_a_warning():
    """100 million pixels: over Pillow's first limit, under ours."""
    data = png_claiming(10_000, 10_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match="damaged or truncated"):  # the pixels are not there
            open_image(data)
    assert not caught


def test_pixel_and_byte_limits_are_arguments(tmp_path):
    path = tmp_path / "image.png"
    quadrants().save(path)
    data = path.read_bytes()
    assert open_image(path, limits=ImageLimits(max_pixels=800, max_bytes=len(data))).size == (40, 20)
    for source in (path, data, io.BytesIO(data), "data:;base64," + base64.b64encode(data).decode()):
        with pytest.raises(ImageError, match="limit is 799"):
            open_image(source, limits=ImageLimits(max_pixels=799))
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with pytest.raises(ImageError, match=f"limit is {len(data) - 2}"):
            open_image(source, limits=ImageLimits(max_bytes=len(data) - 2))
    with pytest.raises(ImageError, match="limit is 799"):
        open_image(quadrants(), limits=ImageLimits(max_pixels=799))


def test_nothing_of_pillow_is_changed():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, list(warnings.filters))
    open_image(encoded(quadrants()))
    for source in (b"x", png_claiming(30_000, 30_000), encoded(quadrants())[:60]):
        with pytest.raises(ImageError):
            open_image(source)
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, list(warnings.filters))
    assert after == before


def test_images_need_neither_torch_nor_transformers_nor_httpx():
    program = (
        "import sys, io\n"
        "from PIL import Image\n"
        "from fastvlm.images import open_image\n"
        "f = io.BytesIO(); Image.new('RGBA', (3, 3)).save(f, 'PNG'); open_image(f.getvalue())\n"
        "print([m for m in ('torch', 'transformers', 'httpx', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ URLs


class Pages(http.server.BaseHTTPRequestHandler):
    """A small web: an image, and what goes wrong with images on the web."""

    image = encoded(quadrants())

    def do_GET(self):
        page = self.path.split("?")[0]
        getattr(self, "page_" + page.strip("/").replace("-", "_"), self.page_missing)()

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def page_image(self):
        self.answer(self.image)

    def page_moved(self):
        self.answer(b"", 302, Location="/image")

    def page_loop(self):
        self.answer(b"", 302, Location="/loop")

    def page_away(self):
        self.answer(b"", 302, Location="file:///etc/passwd")

    def page_missing(self):
        self.answer(b"nothing here", 404)

    def page_broken(self):
        self.answer(b"sorry", 500)

    def page_html(self):
        self.answer(b"<html>not an image</html>")

    def page_empty(self):
        self.answer(b"")

    def page_announced(self):
        self.send_response(200)
        self.send_header("Content-Length", str(10**12))
        self.end_headers()

    def page_endless(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"\0" * 65536)

    def page_dripping(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.is_over.wait(0.05):
                self.wfile.write(b"\0")

    def page_silent(self):
        self.server.is_over.wait()

    def page_short(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.image)))
        self.end_headers()
        self.wfile.write(self.image[:50])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    server.is_over = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("page", ["image", "moved", "image?token=secret"])
def test_urls(web, page):
    assert np.array_equal(np.asarray(open_image(f"{web}/{page}")), np.asarray(quadrants()))


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("missing", "status 404"),
        ("broken?token=secret", "status 500"),
        ("loop", "TooManyRedirects"),
        ("away", "UnsupportedProtocol"),
        ("html", "not an image"),
        ("empty", "empty"),
        ("announced", "limit is 1000000"),
        ("endless", "limit is 1000000"),
        ("short", "RemoteProtocolError"),
    ],
)
def test_bad_urls_are_given_up(web, page, says):
    with pytest.raises(ImageError, match=says) as caught:
        open_image(f"{web}/{page}", limits=ImageLimits(max_bytes=1_000_000, timeout_s=300))
    assert "secret" not in str(caught.value)  # queries carry tokens


@pytest.mark.parametrize("page", ["dripping", "silent"])
def test_urls_that_never_end_are_given_up_after_the_timeout(web, page):
    """These pages end with the test's server: that the call returns at all shows that it gave up."""
    with pytest.raises(ImageError, match=r"longer than 0\.5 s|limits are 0\.5 s"):
        open_image(f"{web}/{page}", limits=ImageLimits(max_bytes=1_000_000, timeout_s=0.5))


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:1/x.png", "https://[bad", "http://a b/c"])
def test_unreachable_and_malformed_urls(url):
    with pytest.raises(ImageError, match="cannot be fetched"):
        open_image(url, limits=ImageLimits(timeout_s=1))


def test_encoded_bytes_are_those_of_the_source(tmp_path):
    data = encoded(quadrants())
    (tmp_path / "image.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (
        data,
        memoryview(data),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        uri,
        io.BytesIO(data),
    ):
        assert encoded_bytes(source) == data
    assert encoded_bytes(quadrants()) is None and encoded_bytes(np.zeros((2, 2, 3), np.uint8)) is None


@pytest.mark.parametrize("source", ["no.png", b"", 7, "data:,"])
def test_encoded_bytes_refuses_what_holds_no_image(source):
    with pytest.raises(ImageError):
        encoded_bytes(source)
    with pytest.raises(ImageError, match=r"larger|limit"):
        encoded_bytes(b"x" * 11, limits=ImageLimits(max_bytes=10))
