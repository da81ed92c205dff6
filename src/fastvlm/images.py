"""Anything that may hold an image -> an upright RGB image, within limits.

The way of every image: a source (path, URL, data URI, bytes, file, PIL image, array) gives bytes, the bytes' header
gives a size that is checked before a pixel is decoded, and :mod:`fastvlm.image_pixels` turns any mode into 8-bit RGB.

Nothing of Pillow's global state (``Image.MAX_IMAGE_PIXELS``, ``ImageFile.LOAD_TRUNCATED_IMAGES``, warning filters) is
read or changed: the limits are ours, per call. This module needs neither torch nor transformers; numpy and httpx are
imported only for arrays and URLs.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from fastvlm.data_uri import is_data_uri, read_data_uri
from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.image_formats import identify
from fastvlm.image_headers import check_structure, check_tiff_blocks, is_sane_directory
from fastvlm.image_pixels import ALPHA_BACKGROUND, scaled_to_bytes, stored_samples, to_rgb

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALPHA_BACKGROUND", "DEFAULT_LIMITS", "ImageLimits", "encoded_bytes", "open_image"]

EXIF_ORIENTATION = 0x0112
# EXIF 2.32, section 4.6.4: how to turn a stored image upright, by the value of its Orientation tag.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SOURCES = "a path, an http(s) URL, a data URI, bytes, a binary file, a PIL image, or an array (HxW, HxWxC or CxHxW)"


@dataclass(frozen=True)
class ImageLimits:
    """What a source may cost before it is refused.

    Args:
        max_bytes: size of the encoded image (file, response body, decoded data URI).
        max_pixels: width x height, read from the header before anything is decoded (decoding takes 4 bytes a pixel);
            also of images inside (icons).
        max_scans: times that a progressive JPEG may run over its pixels, counted before anything is decoded. Common
            encoders write 1 to 12; each one takes as long as decoding a baseline JPEG.
        timeout_s: seconds that a URL may take, as a whole.
        max_redirects: redirects that a URL may take.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 120_000_000
    max_scans: int = 32
    timeout_s: float = 20.0
    max_redirects: int = 5


DEFAULT_LIMITS = ImageLimits()


def open_image(source: Any, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The image that `source` holds: mode RGB, 8 bits a channel, upright (EXIF orientation applied).

    Transparency is composited on white, 16-bit grayscale is scaled (not clipped), animations give their first frame
    (a PIL image the frame it stands at). An RGB PIL image without orientation is returned as it is, not copied.

    Args:
        source: a path (str or Path), an http(s) URL, a data URI, bytes, a binary file object, a PIL image, or a NumPy
            array or torch tensor: HxW, HxWxC or CxHxW with C of 1, 3 or 4; uint8, uint16, bool, or floats in [0, 1].
        limits: what the source may cost.

    Raises:
        ImageError: no image, a damaged or truncated one, one over the limits, an unreachable URL, an array whose
            layout or range is ambiguous.
    """
    name = _name(source)
    if isinstance(source, Image.Image):
        _check_undecoded(source, name, limits)
        image = source
    elif _is_array(source):
        image = _from_array(source, name)
    else:
        image = _opened(_read(source, name, limits), name, limits)
    _check_size(image.size, name, limits)
    return _decoded_rgb(image, name)


def encoded_bytes(source: Any, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes | None:
    """The encoded image that `source` holds, not decoded; None for a PIL image or an array. Raises ImageError."""
    is_decoded = isinstance(source, Image.Image) or _is_array(source)
    return None if is_decoded else _read(source, _name(source), limits)


def _name(source: Any) -> str:
    """How error texts call a source: short, and without the payload or the query of a URL."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        text = text if isinstance(text, str) else os.fsdecode(text)
        if is_data_uri(text):
            return f"data URI {text[:24]}... ({len(text)} characters)"
        if text.startswith(("http://", "https://")):
            text = text.split("?", 1)[0]
        return repr(text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image of mode {source.mode}"
    if _is_array(source):
        return f"array of shape {tuple(source.shape)} and dtype {source.dtype}"
    return f"object of type {type(source).__name__}"


# ---------------------------------------------------------------------------------------------- source -> bytes


def _read(source: Any, name: str, limits: ImageLimits) -> bytes:
    """The encoded image's bytes; never more than `limits.max_bytes`."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and is_data_uri(source):
        data = read_data_uri(source, name, limits.max_bytes)
    elif isinstance(source, str) and "://" in source[:16]:
        data = _fetch(source, name, limits)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_path(Path(os.fspath(source)), name, limits)
    elif callable(getattr(source, "read", None)):
        data = _read_file(source, name, limits)
    else:
        raise ImageError(f"Got an {name} where an image was expected. Pass {SOURCES}.")
    if not data:
        raise ImageError(f"{name} is empty: 0 bytes hold no image.")
    _check_bytes(len(data), name, limits)
    return data


def _check_bytes(num_bytes: int, name: str, limits: ImageLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise ImageTooLargeError(
            f"{name} has {num_bytes} bytes or more; the limit is {limits.max_bytes}. Pass a smaller image, or "
            "ImageLimits(max_bytes=...)."
        )


def _read_path(path: Path, name: str, limits: ImageLimits) -> bytes:
    try:
        if not path.exists():
            raise ImageError(f"There is no file {name}. Pass {SOURCES}.")
        if not path.is_file():
            raise ImageError(f"{name} is no regular file (a folder or a device?). Pass the path of a picture.")
        _check_bytes(path.stat().st_size, name, limits)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}). Pass {SOURCES}.") from error


def _read_file(file: BinaryIO, name: str, limits: ImageLimits) -> bytes:
    try:
        data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a closed file
        raise ImageError(f"{name} cannot be read ({error}).") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} gave {type(data).__name__} instead of bytes. Open the file with mode 'rb'.")
    return data


def _fetch(url: str, name: str, limits: ImageLimits) -> bytes:
    """The body of an http(s) URL, read piece by piece so that a long or slow one is given up early."""
    if not url.startswith(("http://", "https://")):
        raise ImageError(f"{name} is no http or https URL. Pass {SOURCES}.")
    import httpx  # noqa: PLC0415 - only URLs need it

    deadline_s = time.monotonic() + limits.timeout_s
    body = bytearray()
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=limits.max_redirects, timeout=limits.timeout_s) as client,
            client.stream("GET", url, headers={"User-Agent": "fastvlm"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ImageError(f"{name} answered with HTTP status {response.status_code}; expected 200.")
            announced = response.headers.get("Content-Length", "")
            _check_bytes(int(announced) if announced.isdecimal() else 0, name, limits)
            for piece in response.iter_bytes():
                body += piece
                _check_bytes(len(body), name, limits)
                if time.monotonic() > deadline_s:
                    raise ImageError(f"{name} took longer than {limits.timeout_s} s. Download it, and pass the file.")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{name} cannot be fetched ({type(error).__name__}: {reason}); limits are {limits.timeout_s} s and "
            f"{limits.max_redirects} redirects. Download it, and pass the file."
        ) from error
    return bytes(body)


# ---------------------------------------------------------------------------------------------- bytes -> PIL image


def _opened(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """:func:`identify`, for a file that would not cost more than its header says."""
    bounds = {"max_pixels": limits.max_pixels, "max_scans": limits.max_scans}
    check_structure(data, name, **bounds)
    image = identify(data, name)
    if image.format == "TIFF":
        check_tiff_blocks(getattr(image, "tag_v2", {}), data, name, **bounds)
    return image


def _check_undecoded(image: Image.Image, name: str, limits: ImageLimits) -> None:
    """The structure of the file behind a PIL image that ``Image.open`` gave and nobody has decoded yet."""
    file = getattr(image, "fp", None)
    if not getattr(image, "tile", None) or file is None:
        return
    position = file.tell()
    file.seek(0)
    data = file.read(limits.max_bytes)
    file.seek(position)
    check_structure(data, name, max_pixels=limits.max_pixels, max_scans=limits.max_scans)


def _check_size(size_px: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size_px
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels; an image has at least one.")
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} = {width * height} pixels; the limit is {limits.max_pixels}. Pass a smaller "
            "image, or ImageLimits(max_pixels=...)."
        )


def _decoded_rgb(image: Image.Image, name: str) -> Image.Image:
    """Pixels decoded, turned upright, in RGB."""
    try:
        stored = stored_samples(image, name)
        image.load()
        return to_rgb(_upright(image), stored, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(
            f"{name} needs more memory to decode than there is. Pass a smaller image, or another format."
        ) from error
    except Exception as error:  # the decoders of a dozen formats raise a dozen kinds of errors on damaged data
        raise ImageError(
            f"{name} is damaged or truncated and cannot be decoded ({type(error).__name__}: {error}). Pass a whole one."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    stored = image.info.get("exif", b"")
    if isinstance(stored, bytes) and not is_sane_directory(stored.removeprefix(b"Exif\0\0")):
        return image
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except (SyntaxError, struct.error, ValueError, OSError, TypeError, KeyError):
        return image  # unreadable EXIF says nothing about the image; viewers show it as it is stored
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


# ---------------------------------------------------------------------------------------------- array -> PIL image


def _is_array(source: Any) -> bool:
    """NumPy arrays, torch tensors and whatever else has a shape, a dtype and a way to NumPy."""
    return hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "__array__")


def _from_array(source: Any, name: str) -> Image.Image:
    import numpy as np  # noqa: PLC0415

    if hasattr(source, "detach"):  # a torch tensor, perhaps on a GPU, perhaps bfloat16 (which NumPy lacks)
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    array = np.asarray(source)
    return Image.fromarray(_as_bytes(_channels_last(array, name), name))


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """HxW, or HxWxC with C of 3 or 4, contiguous."""
    import numpy as np  # noqa: PLC0415

    if array.size == 0:
        raise ImageError(f"{name} is empty; an image has at least one pixel.")
    if array.ndim == 4:
        raise ImageError(f"{name} is a batch. Pass its images one by one, as a list.")
    if array.ndim not in {2, 3}:
        raise ImageError(f"{name} has {array.ndim} axes; expected HxW, HxWxC or CxHxW.")
    if array.ndim == 3:
        first, last = array.shape[0] in {1, 3, 4}, array.shape[2] in {1, 3, 4}
        if first == last:
            problem = "may be HxWxC or CxHxW" if first else "has no axis of 1, 3 or 4 channels, first or last"
            raise ImageError(f"{name} {problem}. Pass a PIL image, or an array whose channel axis is clear.")
        array = np.moveaxis(array, 0, 2) if first else array
        array = array[:, :, 0] if array.shape[2] == 1 else array
    return np.ascontiguousarray(array)


def _as_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 of the same shape; floats must lie in [0, 1]."""
    import numpy as np  # noqa: PLC0415

    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return scaled_to_bytes(array)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also refuses NaN
            raise ImageError(f"{name} ranges from {low} to {high}; floats must lie in [0, 1]: divide or clip.")
        scaled: np.ndarray = np.rint(array * 255.0).astype(np.uint8)
        return scaled
    raise ImageError(f"{name} has no range that is certain; expected uint8, uint16, bool, or floats in [0, 1].")
