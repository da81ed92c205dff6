"""Image files written byte by byte, so that nothing of Pillow stands between a test and what a file says."""

from __future__ import annotations

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's color types


def packed(values, bits, byteorder="big"):
    """Samples of `bits` bits side by side, padded to whole bytes, the first in the highest bits."""
    if bits in (16, 32):
        return b"".join(value.to_bytes(bits // 8, byteorder) for value in values)
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def png_chunk(kind, payload):
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(color_type, bits, samples, *, width, trns=None, plte=None, size=None, extra=b""):
    """One row of `width` pixels; `size` is what the header claims instead, `extra` are chunks before the pixels."""
    height = 1
    claimed = size or (width, height)
    chunks = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *claimed, bits, color_type, 0, 0, 0)) + extra
    if plte is not None:
        chunks += png_chunk(b"PLTE", bytes(plte))
    if trns is not None:
        chunks += png_chunk(b"tRNS", trns)
    chunks += png_chunk(b"IDAT", zlib.compress(b"\0" + packed(samples, bits)))
    return PNG_SIGNATURE + chunks + png_chunk(b"IEND", b"")


def tiff(data, *, width, bits, photometric, order="<", height=1, tags=None, planes=1):
    """One strip of uncompressed samples (or one a plane); `bits` is a tuple, one a sample; `tags` are further ones.

    Tags are ``{number: (type, values)}`` with type 3 (16 bits), 4 (32 bits), 1 or 7 (bytes).
    """
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, list(bits)),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8 + index * (len(data) // planes) for index in range(planes)]),
        277: (3, [len(bits)]),
        278: (4, [height]),
        279: (4, [len(data) // planes] * planes),
        284: (3, [1 if planes == 1 else 2]),
        **(tags or {}),
    }
    data += b"\0" * (len(data) % 2)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    ifd, rest = struct.pack(order + "H", len(entries)), b""
    start = 8 + len(data)
    end = start + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        value = struct.pack(order + {1: "B", 3: "H", 4: "I", 7: "B"}[kind] * len(values), *values)
        where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", end + len(rest))
        rest += b"" if len(value) <= 4 else value
        ifd += struct.pack(order + "HHI", tag, kind, len(values)) + where
    return magic + struct.pack(order + "I", start) + data + ifd + b"\0\0\0\0" + rest


def pnm(kind, width, maxval, body):
    head = f"P{kind}\n{width} 1\n" + ("" if maxval is None else f"{maxval}\n")
    return head.encode() + body
