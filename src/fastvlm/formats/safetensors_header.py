"""Reads and checks the header of a safetensors file without reading tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvlm.errors import CheckpointError
from fastvlm.formats.header_json import size_and_header
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
    size, raw = size_and_header(file)
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


def _entry(file: Path, key: str, value: Any) -> TensorEntry:
    """One tensor's; raises ValueError, KeyError or TypeError if shape, dtype and place do not fit each other."""
    shape, (begin, end) = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in [*shape, begin, end]):
        raise ValueError(f"{key!r} has the shape {str(shape)[:80]} at {str(value['data_offsets'])[:80]}")
    entry = TensorEntry(file, tuple(shape), DTYPES[value["dtype"]])
    if entry.num_bytes != end - begin:
        raise ValueError(f"{key!r} takes {end - begin} bytes, but its shape and dtype take {entry.num_bytes}")
    return entry
