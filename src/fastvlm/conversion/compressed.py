"""Writes checkpoints in the format of compressed-tensors; see ``formats/compressed_tensors.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fastvlm.conversion.shards import PlannedTensor, split_into_shards, write_index, write_safetensors
from fastvlm.errors import UsageError
from fastvlm.formats.compressed_tensors import ERROR_KEY, packed_parts, quantization_config
from fastvlm.formats.folder import CheckpointFolder
from fastvlm.formats.names import linear_groups
from fastvlm.formats.quantized_file import QuantizationOptions, QuantizedWeights
from fastvlm.formats.rounding import (
    GROUP_SIZES,
    Int4Weight,
    Int8Weight,
    RoundedWeight,
    int4_from_values,
    quantize_int4_symmetric,
    quantize_int8,
)

_MAX_SHARD_BYTES = 2 * 10**9


def check_groups(folder: CheckpointFolder, options: QuantizationOptions) -> None:
    """Raise UsageError unless all layers have whole groups: the format describes all with one group size."""
    num_layers = folder.config["text_config"]["num_hidden_layers"]
    inputs = {folder.shapes[name][1] for names in linear_groups(num_layers)[:-1] for name in names}
    if options.bits == 4 and any(count % options.group_size for count in inputs):
        fitting = [str(size) for size in GROUP_SIZES if all(count % size == 0 for count in inputs)]
        raise UsageError(
            f"group_size is {options.group_size}, but layers have {', '.join(map(str, sorted(inputs)))} inputs; "
            f"expected {' or '.join(fitting) or '8 bits'}."
        )


def round_symmetric(weight: Tensor, bits: int, group_size: int) -> RoundedWeight:
    """Round to `bits` without zeros; scales are numbers of the weight's dtype, in which they are stored."""
    return quantize_int8(weight, weight.dtype) if bits == 8 else quantize_int4_symmetric(weight, group_size)


def write_compressed(
    work: Path, quantized: QuantizedWeights, rest: Sequence[PlannedTensor], dtype: torch.dtype
) -> None:
    """Weight files with packed linear layers, and `rest` as it is."""
    tensors = [*rest, *_packed(quantized, dtype)]
    error = {} if quantized.error is None else {ERROR_KEY: json.dumps(asdict(quantized.error))}
    shards = split_into_shards(tensors, _MAX_SHARD_BYTES)
    for name, shard in shards.items():
        write_safetensors(work / name, shard, metadata=error)
    write_index(work, shards)


def add_quantization_config(work: Path, options: QuantizationOptions) -> None:
    """Say in ``config.json`` how the weights are packed."""
    file = work / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["quantization_config"] = quantization_config(options)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _packed(quantized: QuantizedWeights, dtype: torch.dtype) -> Iterator[PlannedTensor]:
    for linear in quantized.linears:
        start = 0
        for name, rows in zip(linear.names, linear.rows, strict=True):
            weight = _rows(linear.weight, start, start + rows)
            for part, tensor in packed_parts(weight, dtype).items():
                yield PlannedTensor.of(name.removesuffix("weight") + part, tensor)
            start += rows


def _rows(weight: RoundedWeight, start: int, end: int) -> RoundedWeight:
    """Outputs `start` to `end` of a symmetric weight."""
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[start:end].contiguous(), weight.scales[start:end].contiguous())
    assert isinstance(weight, Int4Weight)  # noqa: S101
    return int4_from_values(weight.values()[start:end], weight.scales_and_zeros[:, start:end, 0].T)
