"""Data URIs (RFC 2397) -> bytes. The time and the memory that it takes grow linearly with the URI."""

from __future__ import annotations

import base64
import binascii

from fastvlm.errors import ImageError, ImageTooLargeError

_WHITE_SPACE = b" \t\n\r\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")  # RFC 4648, section 5
_MAX_CHARS_PER_BYTE = 4  # base64 in which every character is percent-encoded: 3 characters x 4 / 3


def is_data_uri(text: str) -> bool:
    """True if `text` begins with the scheme ``data:``, in any case."""
    return text[:5].lower() == "data:"


def read_data_uri(uri: str, name: str, max_bytes: int) -> bytes:
    """The bytes of ``data:[<type>][;<parameter>=<value>]...[;base64],<payload>``.

    Base64 may be broken into lines, percent-encoded, in the URL-safe alphabet, or without its padding.

    Args:
        uri: begins with ``data:``.
        name: how error texts call it.
        max_bytes: limit of the result.

    Raises:
        ImageTooLargeError: more bytes than `max_bytes`; found before anything is decoded where the length shows it.
        ImageError: no comma; base64 that is not valid.
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ImageError(f"{name} has no comma. Expected data:image/png;base64,<payload>.")
    is_base64 = "base64" in [parameter.strip().lower() for parameter in header.split(";")[1:]]
    _check_length(len(payload), _MAX_CHARS_PER_BYTE * max_bytes, name, max_bytes)
    data = _percent_decoded(payload.encode("utf-8", "replace"))
    if is_base64:
        data = data.translate(_URL_SAFE, _WHITE_SPACE)
        _check_length(len(data.rstrip(b"=")) * 3 // 4, max_bytes, name, max_bytes)
        data = _base64_decoded(data, name)
    _check_length(len(data), max_bytes, name, max_bytes)
    return data


def _check_length(length: int, limit: int, name: str, max_bytes: int) -> None:
    if length > limit:
        raise ImageTooLargeError(
            f"{name} has more than {max_bytes} bytes; the limit is {max_bytes}. Pass a smaller image."
        )


def _base64_decoded(data: bytes, name: str) -> bytes:
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64: {error}. Was it cut?") from error


def _percent_decoded(data: bytes) -> bytes:
    """`data` with each ``%XX`` replaced by its byte; other percent signs stay.

    :func:`urllib.parse.unquote_to_bytes` makes an object of each escape: 18 MB of them take seconds and 1 GB.
    """
    if b"%" not in data:
        return data
    import numpy as np  # noqa: PLC0415 - few URIs need it

    digits = np.full(256, 16, np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        digits[[ord(digit), ord(digit.upper())]] = value
    chars = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(chars[:-2] == ord("%"))
    high, low = digits[chars[starts + 1]], digits[chars[starts + 2]]
    is_escape = (high < 16) & (low < 16)
    starts = starts[is_escape]
    decoded = chars.copy()
    decoded[starts] = 16 * high[is_escape] + low[is_escape]
    is_kept = np.ones(len(chars), np.bool_)
    is_kept[starts + 1] = is_kept[starts + 2] = False
    return decoded[is_kept].tobytes()
