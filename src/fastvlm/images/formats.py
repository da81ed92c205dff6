"""Which image formats are read, and by what: bytes -> a PIL image whose pixels have not been decoded.

Nothing is registered with Pillow: HEIF's reader (the extra ``heif``) is asked directly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from PIL import Image

from fastvlm.errors import ImageError

# What is opened. Pillow knows more, but some of its readers run programs (EPS starts Ghostscript) and some take almost
# any bytes for an image (TGA, PCX have no signature). AVIF is in Pillow's wheels from 11.3 on.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "QOI", "AVIF", "HEIF")

# Brands of ISO 23008-12 (HEIF) with HEVC inside, and the general ones, which AVIF files have, too.
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}


def readable_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that can be read here."""
    Image.init()
    return tuple(name for name in FORMATS if _is_readable(name))


def _is_readable(name: str) -> bool:
    if name == "AVIF":  # Pillow has the reader also where it was built without the decoder
        from PIL import features  # noqa: PLC0415 - for the text of an error

        return "AVIF" in Image.OPEN and bool(features.check("avif"))
    return name in Image.OPEN or (name == "HEIF" and find_spec("pillow_heif") is not None)


def identify(data: bytes, name: str) -> Image.Image:
    """A PIL image whose header has been read and whose pixels have not.

    This is ``Image.open`` without its size check: that one follows a global of Pillow's and warns, ours is an argument.

    Raises:
        ImageError: no format that is known or can be read here, or a damaged header; `name` is how it calls the file.
    """
    reasons: dict[str, Exception] = {}
    for register_readers in (Image.preinit, Image.init):  # the common formats, then all of them
        register_readers()
        for format_name in FORMATS:
            factory = None if format_name in reasons else _reader(format_name, data)
            if factory is None:
                continue
            try:
                image: Image.Image = factory(io.BytesIO(data), "")
            except Exception as error:  # noqa: BLE001 - damaged headers raise anything (struct.error, ValueError, ...)
                reasons[format_name] = error
            else:
                return image
    raise ImageError(f"{name} is not an image that can be opened ({_reason(data, reasons)}).")


def _reader(format_name: str, data: bytes) -> Any | None:
    """What opens files of a format, if `data` begins as one."""
    if format_name in Image.OPEN:
        factory, accept = Image.OPEN[format_name]
        # An answer is something true, or a text that says why what is recognized cannot be read.
        answer = True if accept is None else accept(data[:16])
        return factory if answer and not isinstance(answer, str) else None
    if format_name == "HEIF" and _brand(data) in HEIF_BRANDS and find_spec("pillow_heif") is not None:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra, for few files

        return HeifImageFile
    return None


def _brand(data: bytes) -> bytes:
    """The major brand of an ISO media file."""
    return data[8:12] if data[4:8] == b"ftyp" else b""


def _reason(data: bytes, reasons: Mapping[str, Exception]) -> str:
    """Why no reader opened `data`; `reasons` are of those that know its first bytes."""
    readable = readable_formats()
    is_heif = _brand(data) in HEIF_BRANDS and b"avif" not in data[12:64]  # the compatible brands
    if is_heif and "HEIF" not in readable:
        return "it is HEIF (HEIC), which needs the package 'pillow-heif'. Run: pip install 'fastvlm[heif]'"
    if data.lstrip().startswith(b"%PDF-"):
        return "it is a PDF; fastvlm.open_frames gives its pages as images"
    if _brand(data) in AVIF_BRANDS and "AVIF" not in readable:
        return "it is AVIF, which this Pillow cannot read. Run: pip install --upgrade 'pillow>=11.3'"
    if (_brand(data) and not is_heif and _brand(data) not in AVIF_BRANDS) or data.startswith(b"\x1a\x45\xdf\xa3"):
        return "it is a video; fastvlm.open_frames gives its frames as images"
    if reasons:
        said = "; ".join(f"{name}: {str(error) or type(error).__name__}" for name, error in reasons.items())
        return f"it begins as {', '.join(reasons)}, but is damaged or of a kind that is not read: {said}"
    return f"it begins with {data[:12]!r}; known formats: {', '.join(readable)}"
