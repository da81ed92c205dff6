"""Linear layers with 4-bit weights, a scale and a zero for each group of inputs of each output channel.

Weights: ``w ~ (value - 8) * scale + zero`` with values in 0..15, so the error of a weight is at most half its group's
scale, and what rounding scale and zero to bfloat16 adds.

Layout of the packed values: blocks of 64 outputs; in a block, for each input 32 bytes, byte j holding output j in its
low half and output j + 32 in its high half. It is the order in which torch's AVX-512 kernel reads, so a file in it is
used as it lies. Outputs are padded to a multiple of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.int8 import Int8DynamicLinear, Int8WeightOnlyLinear, int8_linear
from fastvlm.engine.linear import Linear, LinearFactory, PlainLinear

__all__ = ["GROUP_SIZES", "Int4Linear", "Int4Weight", "int4_factory", "int4_linear", "pack_int4", "quantise_int4"]

GROUP_SIZES = (32, 64, 128)
BLOCK = 64  # outputs that are packed together
MIDDLE, LARGEST = 8, 15
# From so many rows on, turning the weight into bfloat16 and multiplying that is faster than the int4 kernel, whose time
# grows with the rows (AMD Zen 4, torch 2.13; see docs/performance.md).
MANY_ROWS = 64
CHUNK = 1024  # outputs that are turned into bfloat16 at a time: 2 MB at 1024 inputs, which stay in cache


@dataclass(frozen=True)
class Int4Weight:
    """A weight (out, in) in groups of `group_size` inputs.

    Attributes:
        packed: uint8 (out padded to a multiple of 64, in / 2), laid out as the module says.
        scales_and_zeros: bfloat16 (in / group_size, out padded, 2).
        out_features: outputs without the padding.
    """

    packed: Tensor
    scales_and_zeros: Tensor
    out_features: int

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.packed.shape[1] * 2

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scales_and_zeros.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of values, scales and zeros."""
        return self.packed.nbytes + self.scales_and_zeros.nbytes

    def dequantise(self) -> Tensor:
        """The weight (out, in) in bfloat16."""
        return self.columns(0, self.packed.shape[0])[:, : self.out_features].T.contiguous()

    def columns(self, start: int, end: int) -> Tensor:
        """Outputs `start` to `end` (multiples of 64) of the transposed weight (in, end - start), bfloat16."""
        blocks = self.packed[start:end].reshape(-1, self.in_features, BLOCK // 2).transpose(0, 1)
        values = torch.empty(self.in_features, blocks.shape[1], BLOCK, dtype=torch.bfloat16)
        values[..., : BLOCK // 2] = blocks & 15
        values[..., BLOCK // 2 :] = blocks >> 4
        # Contiguous: `addcmul` is three times slower with a stride of two.
        scales, zeros = (t.contiguous() for t in self.scales_and_zeros[:, None, start:end].unbind(-1))
        grouped = values.reshape(scales.shape[0], -1, end - start).sub_(MIDDLE)
        return torch.addcmul(zeros, grouped, scales).reshape(self.in_features, -1)


def quantise_int4(weight: Tensor, group_size: int = 32) -> Int4Weight:
    """`weight` (out, in) of any floating dtype; `in` is a multiple of `group_size`, one of 32, 64 and 128."""
    out_features, in_features = weight.shape
    groups = F.pad(weight.detach().float(), (0, 0, 0, -out_features % BLOCK)).reshape(
        -1, in_features // group_size, group_size
    )
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scales = ((high - low) / LARGEST).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16().float()
    zeros = (low + MIDDLE * scales).bfloat16().float()
    values = ((groups - zeros) / scales).round_().add_(MIDDLE).clamp_(0, LARGEST).to(torch.uint8)
    scales_and_zeros = torch.cat([scales, zeros], -1).transpose(0, 1).bfloat16().contiguous()
    return Int4Weight(pack_int4(values.reshape(-1, in_features)), scales_and_zeros, out_features)


def pack_int4(values: Tensor) -> Tensor:
    """uint8 (out, in / 2) in the module's layout of `values` (out, in), 0..15; `out` is a multiple of 64."""
    blocks = values.reshape(-1, 2, BLOCK // 2, values.shape[1])
    return (blocks[:, 0] | blocks[:, 1] << 4).transpose(1, 2).reshape(values.shape[0], -1).contiguous()


class Int4Linear:
    """torch's grouped int4 kernel for few rows; for many, chunks of the weight are turned into bfloat16 and multiplied.

    float32 activations are rounded to bfloat16, and the result is turned back.
    """

    def __init__(self, weight: Int4Weight, bias: Tensor | None) -> None:
        self.weight, self.num_bytes = weight, weight.num_bytes
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        rows = x.to(torch.bfloat16)
        y = self._few_rows(rows) if rows.shape[0] < MANY_ROWS else self._many_rows(rows)
        if y.shape[1] != self.out_features:
            y = y[:, : self.out_features]
        return y.to(x.dtype) if self._bias is None else y.to(x.dtype).add_(self._bias)

    def _few_rows(self, rows: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.weight.packed, self.weight.group_size, self.weight.scales_and_zeros
        )
        return y

    def _many_rows(self, rows: Tensor) -> Tensor:
        padded = self.weight.packed.shape[0]
        y = rows.new_empty(rows.shape[0], padded)
        for start in range(0, padded, CHUNK):
            end = min(start + CHUNK, padded)
            torch.mm(rows, self.weight.columns(start, end), out=y[:, start:end])
        return y

    def dense(self) -> Tensor:
        """The weight (out, in) that is computed with, bfloat16."""
        return self.weight.dequantise()


def int4_linear(
    weight: Tensor | Int4Weight, bias: Tensor | None, group_size: int = 32
) -> Int4Linear | Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear:
    """4-bit weights; `weight` is rounded here or was before.

    A weight whose inputs are no multiple of `group_size` gets 8 bits. Where the kernel is missing (no AVX-512, no CPU)
    the rounded weight is held in bfloat16: the same numbers, without the gain.
    """
    if isinstance(weight, Tensor):
        if weight.shape[1] % group_size:
            return int8_linear(weight, bias)
        weight = quantise_int4(weight.cpu(), group_size)
    if cpu_kernels().has_packed_int4 and (bias is None or bias.device.type == "cpu"):
        return Int4Linear(weight, bias)
    device = torch.device("cpu") if bias is None else bias.device
    return PlainLinear(weight.dequantise().to(device), bias)


def int4_factory(group_size: int = 32) -> LinearFactory:
    """A factory of 4-bit linears with this group size."""

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        return int4_linear(weight, bias, group_size)

    return make
