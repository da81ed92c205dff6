"""What decoding an image file would cost, as far as its bytes show before anything is decoded.

A width and a height in a header do not say it all: a progressive JPEG may run over all pixels a thousand times, an icon
may hold an image larger than it states, the entries of a TIFF or EXIF directory may all point at the same megabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastvlm.errors import ImageTooLargeError

_SOS, _EOI, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"
# A marker after a scan's data: 0xFF that is neither stuffed (00) nor a restart (D0 to D7) nor filling (FF).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, restarts, SOI: markers that stand alone

_ICO, _PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
_TIFF_ORDERS = {b"II": "<", b"MM": ">"}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_COMPRESSION, _JPEG_COMPRESSIONS = 259, (6, 7)
_BLOCKS = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def check_structure(data: bytes, name: str, *, max_pixels: int, max_scans: int) -> None:
    """Refuse a file that would cost more than its header's width and height say.

    Args:
        data: the whole file, of any format.
        name: how error texts call it.
        max_pixels: width x height of an image inside another.
        max_scans: times that a JPEG may run over its pixels.

    Raises:
        ImageTooLargeError: more than that; a directory that is read many times over.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, name, max_scans)
    elif data.startswith(_ICO):
        _check_ico(data, name, max_pixels)
    elif data[:2] in _TIFF_ORDERS and not is_sane_directory(data):
        raise _overlapping(name)


def _overlapping(name: str) -> ImageTooLargeError:
    return ImageTooLargeError(f"{name} has directory entries that overlap many times over. Save it anew, as PNG.")


# ------------------------------------------------------------------------------------------------- JPEG


def _check_jpeg(data: bytes, name: str, max_scans: int) -> None:
    may_have_many = data.count(b"\xff\xda") > max_scans  # never fewer than there are; a thumbnail's count, too
    num_scans, exif = 0, b""
    for marker, payload in _jpeg_segments(data):
        if marker == _SOS:
            num_scans += 1
            if not may_have_many or num_scans > max_scans:
                break
        if marker == _APP1 and payload.startswith(_EXIF):
            exif += payload[len(_EXIF) :]  # Pillow joins them
        if marker == _APP2 and payload.startswith(_MPF) and not is_sane_directory(payload[len(_MPF) :]):
            raise _overlapping(name)
    if num_scans > max_scans:
        raise ImageTooLargeError(
            f"{name} is a JPEG of more than {max_scans} scans, which is the limit (common ones have 1 to 12). Save it "
            "as a baseline JPEG, or pass ImageLimits(max_scans=...)."
        )
    if not is_sane_directory(exif):
        raise _overlapping(name)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, payload) of each segment in the order in which a decoder meets them, up to the end of the image."""
    position = 2
    while (found := _NEXT_MARKER.search(data, position)) is not None:
        marker, position = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        if marker in _NO_LENGTH:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        yield marker, data[position + 2 : position + length]
        position += max(length, 2)


# ------------------------------------------------------------------------------------------------- ICO


def _check_ico(data: bytes, name: str, max_pixels: int) -> None:
    """The icon's directory says at most 256 x 256; what lies inside says for itself."""
    num_images = int.from_bytes(data[4:6], "little")
    for (offset,) in struct.iter_unpack("<12xI", data[6 : 6 + num_images * 16][: (len(data) - 6) // 16 * 16]):
        width, height = _embedded_size(data[offset : offset + 32])
        if width * height > max_pixels:
            raise ImageTooLargeError(
                f"{name} is an icon with {width} x {height} = {width * height} pixels inside; the limit is "
                f"{max_pixels}. Pass a smaller image, or ImageLimits(max_pixels=...)."
            )


def _embedded_size(head: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG or bitmap by its first 32 bytes; (0, 0) where they are neither."""
    if len(head) < 24:
        return 0, 0
    if head.startswith(_PNG):
        width, height = struct.unpack_from(">II", head, 16)
        return width, height
    is_old = int.from_bytes(head[:4], "little") == 12  # BITMAPCOREHEADER
    width, height = struct.unpack_from("<HH" if is_old else "<ii", head, 4)
    return abs(width), abs(height) // 2  # the image and its mask lie one above the other


# ------------------------------------------------------------------------------------------------- TIFF, EXIF


def is_sane_directory(data: bytes, start: int | None = None) -> bool:
    """False for a TIFF structure (a file, or EXIF) with a directory that would be read many times over.

    Readers copy what each entry points at; entries of an honest file point at places of their own. A structure that
    is damaged costs nothing and is not judged here. `start` is where the directory begins; None for the first one.
    """
    layout = _tiff_layout(data)
    if layout is None:
        return True
    start = layout.first if start is None else start
    read = 0
    for kind, count, offset in layout.entries(data, start):
        length = count * _TIFF_SIZES.get(kind, 1)
        read += max(0, min(length, len(data) - offset)) if length > layout.inline_bytes else 0
    return read <= 4 * len(data)


def tiff_directories(data: bytes, most: int) -> list[int]:
    """Where the directories of a TIFF file begin, one a frame, in their order; `most` of them, each once."""
    layout, found = _tiff_layout(data), dict[int, None]()
    start = 0 if layout is None else layout.first
    while layout is not None and 0 < start < len(data) and start not in found and len(found) < most:
        found[start] = None
        start = layout.following(data, start)
    return list(found)


@dataclass(frozen=True)
class _TiffLayout:
    """Byte order and sizes of a TIFF file's directories, and where the first one begins."""

    counter: str  # formats of :mod:`struct`: of the number of entries, of an entry, of an offset
    entry: str
    pointer: str
    first: int

    @property
    def inline_bytes(self) -> int:
        """The length up to which an entry holds its values itself."""
        return struct.calcsize(self.pointer)

    def entries(self, data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
        """(type, count, offset) of each entry of the directory at `start`, as far as there is one."""
        first, size = start + struct.calcsize(self.counter), struct.calcsize(self.entry)
        if first > len(data):
            return
        num_entries = min(struct.unpack_from(self.counter, data, start)[0], (len(data) - first) // size)
        for _, kind, count, offset in struct.iter_unpack(self.entry, data[first : first + num_entries * size]):
            yield kind, count, offset

    def following(self, data: bytes, start: int) -> int:
        """Where the directory after the one at `start` begins; 0 if there is none."""
        first = start + struct.calcsize(self.counter)
        if first > len(data):
            return 0
        end = first + struct.unpack_from(self.counter, data, start)[0] * struct.calcsize(self.entry)
        if end + self.inline_bytes > len(data):
            return 0
        following: int = struct.unpack_from(self.pointer, data, end)[0]
        return following


def _tiff_layout(data: bytes) -> _TiffLayout | None:
    order = _TIFF_ORDERS.get(data[:2])
    if order is None or len(data) < 16:
        return None
    if 43 in data[2:4]:  # BigTIFF: everything has 8 bytes
        return _TiffLayout(order + "Q", order + "HHQQ", order + "Q", struct.unpack_from(order + "Q", data, 8)[0])
    return _TiffLayout(order + "H", order + "HHII", order + "I", struct.unpack_from(order + "I", data, 4)[0])


def check_tiff_blocks(tags: Any, data: bytes, name: str, *, max_pixels: int, max_scans: int) -> None:
    """Refuse strips and tiles that cost more than the image's width and height say.

    Args:
        tags: of the file, number -> values, as Pillow reads them.
        data, name, max_pixels, max_scans: see :func:`check_structure`.

    Raises:
        ImageTooLargeError: tiles of more than `max_pixels`; JPEG data of more than `max_scans` scans, or that is used
            by many strips.
    """
    tile = (tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0))
    if all(isinstance(side, int) for side in tile) and tile[0] * tile[1] > max_pixels:
        raise ImageTooLargeError(f"{name} has tiles of {tile[0]} x {tile[1]} pixels; the limit is {max_pixels}.")
    if tags.get(_COMPRESSION) not in _JPEG_COMPRESSIONS:
        return
    for offsets, counts in _BLOCKS:
        places = list(zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False))
        if sum(max(0, min(count, len(data) - offset)) for offset, count in places) > 2 * len(data):
            raise _overlapping(name)
        if any(data.count(b"\xff\xda", offset, offset + count) > max_scans for offset, count in places):
            raise ImageTooLargeError(f"{name} has a JPEG of more than {max_scans} scans inside, which is the limit.")
