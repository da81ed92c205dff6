"""Writing safetensors shard by shard, one tensor in memory at a time.

safetensors' own writer takes all tensors of a file at once, which for a 7B model is gigabytes; the layout is simple
enough to write as it comes: length of the header, header (JSON), the tensors' bytes.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.safetensors_header import DTYPES

_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written: its name in the file, what it will be, and how to get it then."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> PlannedTensor:
        """A tensor that is in memory already."""
        return cls(name, tuple(tensor.shape), dtype or tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.num_elements * self.dtype.itemsize

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


def num_bytes_of(size: int | str) -> int:
    """Bytes of a size such as ``"2GB"``, ``"500MB"``, ``"1GiB"`` or an int.

    Raises:
        UsageError: it is not a positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)?\s*", str(size).upper())
    if found is None or int(float(found[1]) * _UNITS[found[2] or "B"]) < 1:
        raise UsageError(f"max_shard_size is {size!r}; expected bytes, or a size such as '2GB' or '500MB'.")
    return int(float(found[1]) * _UNITS[found[2] or "B"])


def split_into_shards(tensors: Iterable[PlannedTensor], max_bytes: int) -> dict[str, list[PlannedTensor]]:
    """File name -> its tensors; a file exceeds `max_bytes` only if a single tensor does."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def write_safetensors(
    file: Path,
    tensors: Sequence[PlannedTensor],
    on_bytes: Callable[[int], None] = lambda _: None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write `tensors` to `file`, each read when its turn comes; `on_bytes` is called with the size of each."""
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))  # wide types first: every tensor is aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAME_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("xb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in ordered:
            stream.write(_bytes_of(tensor).numpy().data)
            on_bytes(tensor.num_bytes)


def _bytes_of(planned: PlannedTensor) -> Tensor:
    tensor = planned.read().detach()
    if tuple(tensor.shape) != planned.shape:
        raise CheckpointError(f"{planned.name} is {list(tensor.shape)}; its header says {list(planned.shape)}.")
    return tensor.to(planned.dtype).contiguous().reshape(-1).view(torch.uint8)


def write_index(folder: Path, shards: dict[str, list[PlannedTensor]]) -> None:
    """Write ``model.safetensors.index.json`` if there is more than one shard."""
    if len(shards) == 1:
        return
    tensors = [tensor for shard in shards.values() for tensor in shard]
    index = {
        "metadata": {
            "total_parameters": sum(t.num_elements for t in tensors),
            "total_size": sum(t.num_bytes for t in tensors),
        },
        "weight_map": {tensor.name: name for name, shard in shards.items() for tensor in shard},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
