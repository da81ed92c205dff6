"""Image source (path, URL, data URI, bytes, file, PIL image, array) -> upright 8-bit RGB image.

The header gives a size, which is checked before a pixel is decoded; :mod:`fastvlm.images.pixels` turns any mode
into 8-bit RGB. Pillow's global state (``Image.MAX_IMAGE_PIXELS``, ``ImageFile.LOAD_TRUNCATED_IMAGES``, warning filters)
is neither read nor changed: the limits are arguments.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.data_uri import is_data_uri, read_data_uri
from fastvlm.images.formats import identify
from fastvlm.images.headers import check_structure, check_tiff_blocks, is_sane_directory
from fastvlm.images.limits import DEFAULT_LIMITS, ImageLimits
from fastvlm.images.pixels import stored_samples, to_rgb

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
    name = source_name(source)
    if isinstance(source, Image.Image):
        _check_undecoded(source, name, limits)
        image = source
    elif _is_array(source):
        from fastvlm.images.arrays import image_from_array  # noqa: PLC0415 - NumPy is needed only for arrays

        image = image_from_array(source, name)
    else:
        image = undecoded_image(_read(source, name, limits), name, limits)
    limits.check_size(image.size, name)
    return decoded_rgb(image, name)


def encoded_bytes(source: Any, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes | None:
    """The encoded image that `source` holds, not decoded; None for a PIL image or an array. Raises ImageError."""
    is_decoded = isinstance(source, Image.Image) or _is_array(source)
    return None if is_decoded else _read(source, source_name(source), limits)


def source_name(source: Any) -> str:
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
    limits.check_num_bytes(len(data), name)
    return data


def _fetch(url: str, name: str, limits: ImageLimits) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ImageError(f"{name} is not an http or https URL. Pass {SOURCES}.")
    from fastvlm.images.urls import fetch  # noqa: PLC0415 - httpx is needed only for URLs

    return fetch(url, name, limits)


def _read_path(path: Path, name: str, limits: ImageLimits) -> bytes:
    try:
        if not path.exists():
            raise ImageError(f"There is no file {name}. Pass {SOURCES}.")
        if not path.is_file():
            raise ImageError(f"{name} is not a regular file (a folder or a device?). Pass the path of an image.")
        limits.check_num_bytes(path.stat().st_size, name)
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


def undecoded_image(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """:func:`identify`, for a file that would not cost more than its header says. Raises ImageError."""
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


def decoded_rgb(image: Image.Image, name: str) -> Image.Image:
    """Pixels decoded, turned upright, in RGB; `name` is how errors call the image. Raises ImageError."""
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


def _is_array(source: Any) -> bool:
    """NumPy arrays, torch tensors and whatever else has a shape, a dtype and a way to NumPy."""
    return hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "__array__")
