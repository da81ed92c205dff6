"""A PIL image of any mode -> RGB with 8 bits a channel, with the values that its file states.

Pillow's modes do not say everything: how many bits of a 16-bit sample are used, whether 0 is white, in which depth a
transparent color is written. :func:`stored_samples` reads that from an opened file before its pixels are decoded,
:func:`to_rgb` uses it. What cannot be known is an error: a guess would be another image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastvlm.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

# Transparent pixels show white, as in viewers and as transformers 5.23 does (`image_transforms.convert_to_rgb`).
ALPHA_BACKGROUND = (255, 255, 255)

# TIFF 6.0, section 8 and the supplements; the names of the tags and of their values.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _YCBCR_SUBSAMPLING, _SAMPLE_FORMAT = 258, 259, 262, 284, 530, 339
_NO_COMPRESSION, _WHITE_IS_ZERO, _YCBCR, _SEPARATE_PLANES, _SIGNED = 1, 0, 6, 2, 2

_SCALE_IT = "Scale the values to 0..255 (mode 'L') or to 0..65535 (mode 'I;16') first"
_UNKNOWN_RANGES = {
    "I": f"has integer pixels of 32 bits or with a sign, whose range is not stated. {_SCALE_IT}.",
    "F": f"has floating-point pixels, whose range is not stated. {_SCALE_IT}, or pass a NumPy array in [0, 1].",
}
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}  # whose 16-bit grayscale Pillow opens in mode I (PNG before Pillow 11.0)


@dataclass(frozen=True)
class StoredSamples:
    """What a file says about its samples and Pillow's mode does not.

    Args:
        bits: of one sample; None where nothing says so (16 is meant in the modes of 16 bits).
        is_white_zero: grayscale of 16 bits in which 0 is white. (Pillow itself turns fewer bits round.)
        is_sixteen_bit: mode I holds 0..65535.
    """

    bits: int | None = None
    is_white_zero: bool = False
    is_sixteen_bit: bool = False


def stored_samples(image: Image.Image, name: str) -> StoredSamples:
    """What the file of an image that has not been decoded says about its samples.

    Raises:
        ImageError: samples that Pillow would decode to other values than the file's.
    """
    if image.format == "TIFF":
        return _tiff_samples(getattr(image, "tag_v2", {}), name)
    bits = _png_bits(image) if image.format == "PNG" else None
    if bits == 16 and image.mode == "RGB" and "transparency" in image.info:
        raise ImageError(
            f"{name} has 16 bits a channel and a transparent color (tRNS), of which 8 bits would be compared. Save it "
            "with 8 bits a channel, or with an alpha channel."
        )
    return StoredSamples(bits, is_sixteen_bit=image.format in _SIXTEEN_BIT_FORMATS)


def _png_bits(image: Image.Image) -> int | None:
    """Bits of one sample by the raw mode of the pixels, such as ``L;4`` or ``RGB;16B``; None once they are decoded."""
    tiles: list[Any] = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if tiles else ""
    raw_mode = raw_mode if isinstance(raw_mode, str) else str(raw_mode[0])
    if raw_mode == "1":
        return 1
    digits = raw_mode.partition(";")[2].rstrip("BLN")
    return int(digits) if digits.isdecimal() else None


def _tiff_samples(tags: Any, name: str) -> StoredSamples:
    bits = _first(tags.get(_BITS_PER_SAMPLE), 1)
    photometric = tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    is_plain = _first(tags.get(_COMPRESSION), _NO_COMPRESSION) == _NO_COMPRESSION
    problem = None
    if _first(tags.get(_SAMPLE_FORMAT), 1) == _SIGNED and bits == 8:
        problem = "has signed samples of 8 bits"
    elif photometric == _YCBCR and is_plain and tuple(tags.get(_YCBCR_SUBSAMPLING, (2, 2))) != (1, 1):
        problem = "has uncompressed YCbCr samples with fewer chroma than luma samples"
    elif tags.get(_PLANAR) == _SEPARATE_PLANES and bits != 8:
        problem = f"has separate planes of {bits} bits"
    if problem is not None:
        raise ImageError(f"{name} is a TIFF file that {problem}, which is not supported. Save it as PNG.")
    return StoredSamples(bits, is_white_zero=photometric == _WHITE_IS_ZERO)


def _first(value: Any, default: int) -> int:
    """The first of a tag's values."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def to_rgb(image: Image.Image, stored: StoredSamples, name: str) -> Image.Image:
    """The same image in RGB: more than 8 bits scaled to 8, transparency on :data:`ALPHA_BACKGROUND`.

    Args:
        image: decoded.
        stored: what :func:`stored_samples` gave before that.
        name: how error texts call it.

    Raises:
        ImageError: a mode whose range of values is not known.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _UNKNOWN_RANGES and not (image.mode == "I" and stored.is_sixteen_bit):
        raise ImageError(f"{name} {_UNKNOWN_RANGES[image.mode]}")
    if image.mode.startswith("I"):
        return _gray_of_sixteen_bits(image, stored).convert("RGB")
    if image.mode == "LAB":
        return _rgb_from_lab(image)
    if image.mode in {"La", "RGBa"}:  # premultiplied alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = _with_alpha(image, stored, name)
    background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND, 255))
    return Image.alpha_composite(background, image).convert("RGB")


def _gray_of_sixteen_bits(image: Image.Image, stored: StoredSamples) -> Image.Image:
    """Modes I;16, I;16B, ... and I with 16-bit values as L, transparent pixels in the background's gray.

    0..2**bits - 1 is scaled to 0..255; Pillow's own conversion clips at 255, which turns most 16-bit images white.
    """
    import numpy as np  # noqa: PLC0415 - only here and for arrays

    values = np.asarray(image)
    bits = 16 if stored.bits is None or image.mode == "I" else stored.bits
    gray = scaled_to_bytes(values, bits)
    if stored.is_white_zero:
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if transparent is not None:
        gray[values == transparent] = ALPHA_BACKGROUND[0]
    return Image.fromarray(gray)


def scaled_to_bytes(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """uint8 of the same shape from integers in 0..2**bits - 1: v * 255 / (2**bits - 1), rounded."""
    highest = 2**bits - 1
    scaled: np.ndarray = (values.astype("uint32") * 255 + highest // 2) // highest
    return scaled.clip(max=255).astype("uint8")


def _rgb_from_lab(image: Image.Image) -> Image.Image:
    """sRGB from CIE L*a*b* (D50); Pillow's own conversion has no LAB."""
    from PIL import ImageCms  # noqa: PLC0415 - a mode that hardly anybody has

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # noqa: S101 - None is for in-place conversions
    return converted


def _with_alpha(image: Image.Image, stored: StoredSamples, name: str) -> Image.Image:
    """RGBA; a transparent color that is written in other bits than Pillow's pixels is made theirs."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        raise ImageError(f"{name} has a transparent color of 16 bits and pixels of 8. Give it an alpha channel.")
    if image.mode == "L" and isinstance(transparent, int) and stored.bits is not None and stored.bits < 8:
        highest = 2**stored.bits - 1
        image = image.copy()
        image.info["transparency"] = (transparent & highest) * 255 // highest
    return image if image.mode == "RGBA" else image.convert("RGBA")
