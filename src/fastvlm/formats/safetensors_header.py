"""Reads and checks the header of a safetensors file without reading tensors.

Layout: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import FETCH_AGAIN, parse_json

# safetensors' names of the types that a header may give.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# safetensors itself takes 100 million bytes, which Python parses in seconds. A 7B has 100,000 bytes and 750 tensors.
_MAX_HEADER_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Location, dtype and shape of one tensor; `file` is its path."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Entries of one safetensors file from its header, checked against the file's length.

    Raises:
        CheckpointError: not a safetensors file, truncated, a header of more than 8 MiB, or a contradictory header.
    """
    size, raw = _size_and_header(file)
    try:
        header = parse_json(raw)
        header.pop("__metadata__", None)
        entries = {key: _entry(file, key, value) for key, value in header.items()}
        end = max((value["data_offsets"][1] for value in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} has a header that is not safetensors': {error!r}. {FETCH_AGAIN}") from error
    if size != 8 + len(raw) + end:
        raise CheckpointError(
            f"{file} has {size} bytes, but its header announces {8 + len(raw) + end}: it is "
            f"{'truncated' if size < 8 + len(raw) + end else 'longer than it should be'}. {FETCH_AGAIN}"
        )
    return entries


def _size_and_header(file: Path) -> tuple[int, bytes]:
    """The file's size and its JSON."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                raise CheckpointError(
                    f"{file} is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository, or download "
                    "it."
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= size - 8:
                raise CheckpointError(
                    f"{file} is not a safetensors file, or only its beginning: it has {size} bytes, and its first "
                    f"eight announce a header of {length}. {FETCH_AGAIN}"
                )
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{file} has a header of {length} bytes; a FastVLM's has at most {_MAX_HEADER_BYTES}. This is no "
                    "file of a FastVLM checkpoint."
                )
            return size, stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}. {FETCH_AGAIN}") from error


def _entry(file: Path, key: str, value: Any) -> TensorEntry:
    """One tensor's; raises ValueError, KeyError or TypeError if shape, dtype and place do not fit each other."""
    shape, (begin, end) = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in [*shape, begin, end]):
        raise ValueError(f"{key!r} has the shape {str(shape)[:80]} at {str(value['data_offsets'])[:80]}")
    entry = TensorEntry(file, tuple(shape), DTYPES[value["dtype"]])
    if entry.num_bytes != end - begin:
        raise ValueError(f"{key!r} takes {end - begin} bytes, but its shape and dtype take {entry.num_bytes}")
    return entry
