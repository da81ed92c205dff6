"""Weights in the format of compressed-tensors (``pack-quantized``), which vLLM and transformers read.

A linear layer ``NAME.weight`` (out, in) is three tensors: ``NAME.weight_packed``, int32 (out, in * bits / 32), values
plus half their range, the lowest bits first; ``NAME.weight_scale`` (out, groups), one group at 8 bits;
``NAME.weight_shape``, int64 (2,). Symmetric weights of 8 bits a channel or 4 bits a group are read here, others by
transformers. Encoder, projector and head are plain tensors.

Source: compressed-tensors 0.20, ``compressors/pack_quantized``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from fastvlm.errors import CheckpointError
from fastvlm.formats.names import linear_groups
from fastvlm.formats.quantized_file import (
    Bits,
    HeadBits,
    QuantizationError,
    QuantizationOptions,
    QuantizedWeights,
    RoundedLinear,
)
from fastvlm.formats.rounding import GROUP_SIZES, Int4Weight, Int8Weight, RoundedWeight, int4_from_values
from fastvlm.formats.safetensors_header import TensorEntry

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
ERROR_KEY = "fastvlm_quantization_error"  # in the metadata of the first file
# The image encoder, the projector and the head stay as they are.
IGNORED = ("re:.*vision_tower.*", "re:.*multi_modal_projector.*", "lm_head")
PARTS = ("weight_packed", "weight_scale", "weight_shape")
_OTHER_PARTS = (".weight_zero_point", ".weight_g_idx")
_WORD_BITS = 32


@dataclass(frozen=True)
class CompressedOptions(QuantizationOptions):
    """How weights are rounded in this format: symmetric, and the head not at all."""

    head_bits: HeadBits = 16
    known_head_bits: ClassVar[tuple[int, ...]] = (16,)


def quantization_config(options: QuantizationOptions) -> dict[str, Any]:
    """The entry of ``config.json``."""
    weights: dict[str, Any] = {"num_bits": options.bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if options.bits == 8 else {"strategy": "group", "group_size": options.group_size}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(IGNORED),
    }


def packed_parts(weight: RoundedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """The three tensors of a symmetric weight, by PARTS; scales in `dtype`."""
    bits = 8 if isinstance(weight, Int8Weight) else 4
    values = (weight.values.int() + 128) if isinstance(weight, Int8Weight) else weight.values().int()
    if isinstance(weight, Int8Weight):
        scales = weight.scales[:, None]
    else:
        scales = weight.scales_and_zeros[:, : weight.out_features, 0].T
    shape = torch.tensor([weight.out_features, weight.in_features])
    return dict(zip(PARTS, (pack(values, bits), scales.to(dtype).contiguous(), shape), strict=True))


def pack(values: Tensor, bits: int) -> Tensor:
    """int32 (out, words) of `values` (out, in), each from 0 to 2^bits - 1; the last word is filled with zeros."""
    count = _WORD_BITS // bits
    words = F.pad(values.long(), (0, -values.shape[1] % count)).reshape(len(values), -1, count)
    shifts = torch.arange(0, _WORD_BITS, bits)
    packed: Tensor = (words << shifts).sum(-1).to(torch.int32)  # the highest bit is the sign: the sum wraps around
    return packed


def unpack(packed: Tensor, bits: int, in_features: int) -> Tensor:
    """Values (out, in), uint8, of :func:`pack`."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    values: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return values.reshape(len(packed), -1)[:, :in_features].to(torch.uint8)


def is_compressed(config: Mapping[str, Any]) -> bool:
    """True if ``config.json`` says this format."""
    stored = config.get("quantization_config")
    return isinstance(stored, Mapping) and stored.get("quant_method") == METHOD and stored.get("format") == FORMAT


def compressed_weights(
    folder: Path, entries: Mapping[str, TensorEntry], tensor: Callable[[str], Tensor]
) -> QuantizedWeights | None:
    """The decoder's rounded linear layers among `entries`; None if none is packed, or in a form that is not read here.

    Args:
        folder: for errors.
        entries: name in the files -> entry, in the ``fast_vlm`` layout.
        tensor: reads one of them.

    Raises:
        CheckpointError: packed tensors that are damaged.
    """
    names = {name.removesuffix("_packed") for name in entries if name.endswith(".weight_packed")}
    if not names or any(name.endswith(_OTHER_PARTS) for name in entries):
        return None
    num_layers = len({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name})
    expected = linear_groups(num_layers)[:-1]
    if names != {name for group in expected for name in group}:
        return None
    try:
        found = [tuple(_weight(name, tensor) for name in group) for group in expected]
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} has packed weights that cannot be read: {error}.") from error
    linears = [
        RoundedLinear(group, tuple(weight.out_features for weight in weights), _joined(weights))
        for group, weights in zip(expected, found, strict=True)
    ]
    first = linears[0].weight
    bits: Bits = 8 if isinstance(first, Int8Weight) else 4
    group_size = first.group_size if isinstance(first, Int4Weight) else GROUP_SIZES[0]
    dtype = tensor(f"{min(names)}_scale").dtype
    return QuantizedWeights(tuple(linears), CompressedOptions(bits, group_size), _error(entries), dtype)


def _weight(name: str, tensor: Callable[[str], Tensor]) -> RoundedWeight:
    packed, scales, shape = (tensor(f"{name.removesuffix('weight')}{part}") for part in PARTS)
    out_features, in_features = shape.tolist()
    if packed.dtype != torch.int32 or packed.dim() != 2 or len(packed) != out_features or scales.dim() != 2:
        raise ValueError(f"{name} is packed as {packed.dtype} of shape {list(packed.shape)}")
    bits = 8 if scales.shape[1] == 1 else 4
    if packed.shape[1] != -(-in_features * bits // _WORD_BITS) or len(scales) != out_features:
        raise ValueError(f"{name} has {packed.shape[1]} words a row for {in_features} inputs of {bits} bits")
    if not bool((scales > 0).all() and scales.isfinite().all()):
        raise ValueError(f"{name} has scales that are not finite and above 0")
    values = unpack(packed, bits, in_features)
    if bits == 8:
        return Int8Weight((values.int() - 128).to(torch.int8), scales[:, 0].float().contiguous())
    return int4_from_values(values, scales)


def _joined(weights: tuple[RoundedWeight, ...]) -> RoundedWeight:
    """Weights that read the same input as one."""
    eights = [weight for weight in weights if isinstance(weight, Int8Weight)]
    fours = [weight for weight in weights if isinstance(weight, Int4Weight)]
    if eights and fours:
        raise ValueError("layers that read the same input have different numbers of bits")
    if eights:
        return Int8Weight(torch.cat([w.values for w in eights]), torch.cat([w.scales for w in eights]))
    values = torch.cat([w.values() for w in fours])
    scales = torch.cat([w.scales_and_zeros[:, : w.out_features, 0].T for w in fours])
    return int4_from_values(values, scales)


def _error(entries: Mapping[str, TensorEntry]) -> QuantizationError | None:
    """What :func:`fastvlm.conversion.quantize.quantize` noted."""
    file = min(entry.file for entry in entries.values())
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(ERROR_KEY)
    try:
        found = json.loads(text or "null")
        return QuantizationError(float(found["mean"]), float(found["largest"]))
    except (TypeError, ValueError, KeyError):
        return None
