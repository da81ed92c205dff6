"""Linear layers with 4-bit weights: a scale and a zero per group of inputs of each output channel.

``formats/rounding.py`` defines rounding and layout. torch's kernel packs another number of outputs together on some
CPUs; there the weight is repacked once, in its own memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.backends.cpu.int8 import CHUNK_BYTES, Int8DynamicLinear, Int8WeightOnlyLinear, int8_linear
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.linear import PlainLinear
from fastvlm.backends.page_release import release_pages
from fastvlm.formats.rounding import Int4Weight, quantize_int4

# From so many rows on, turning the weight into floats and multiplying that is faster than the int4 kernel, whose time
# grows with the rows (AMD Zen 4 in bfloat16, Zen 3 in float32, torch 2.13; see docs/performance.md).
MANY_ROWS = 64


class Int4Linear:
    """torch's grouped int4 kernel for few rows; for many rows, chunks of the weight are dequantized and multiplied.

    For few rows float32 activations are rounded to bfloat16, and the result is converted back. Dequantized chunks are
    bfloat16 where the CPU multiplies it, float32 elsewhere.
    """

    def __init__(self, weight: Int4Weight, bias: Tensor | None) -> None:
        kernels = cpu_kernels()
        self.weight, self.num_bytes = weight.in_blocks(kernels.int4_block), weight.num_bytes
        self.out_features, self.in_features = weight.out_features, weight.in_features
        if self.weight is not weight:
            release_pages(weight.packed)
        self._bias = None if bias is None else bias.detach()
        self._many_rows_dtype = kernels.many_rows_dtype

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        y = self._few_rows(x.to(torch.bfloat16)) if x.shape[0] < MANY_ROWS else self._many_rows(x)
        if y.shape[1] != self.out_features:
            y = y[:, : self.out_features]
        return y.to(x.dtype) if self._bias is None else y.to(x.dtype).add_(self._bias)

    def _few_rows(self, rows: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.weight.packed, self.weight.group_size, self.weight.scales_and_zeros
        )
        return y

    def _many_rows(self, rows: Tensor) -> Tensor:
        rows, padded = rows.to(self._many_rows_dtype), self.weight.packed.shape[0]
        chunk = CHUNK_BYTES // rows.element_size()
        y = rows.new_empty(rows.shape[0], padded)
        for start in range(0, padded, chunk):
            end = min(start + chunk, padded)
            torch.mm(rows, self.weight.columns(start, end, rows.dtype), out=y[:, start:end])
        return y

    def dense(self) -> Tensor:
        """The dequantized weight (out, in), bfloat16."""
        return self.weight.dequantize()


def int4_linear(
    weight: Tensor | Int4Weight, bias: Tensor | None, group_size: int = 32
) -> Int4Linear | Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear:
    """4-bit weights; `weight` is rounded here or was before.

    A weight whose inputs are not a multiple of `group_size` gets 8 bits. Where the kernel is missing (no AVX-512, no
    CPU) the rounded weight is held in bfloat16: the same numbers, without the gain.
    """
    if isinstance(weight, Tensor):
        if weight.shape[1] % group_size:
            return int8_linear(weight, bias)
        given, weight = weight, quantize_int4(weight.cpu(), group_size)
        release_pages(given)
    if cpu_kernels().int4_block and (bias is None or bias.device.type == "cpu"):
        return Int4Linear(weight, bias)
    device = torch.device("cpu") if bias is None else bias.device
    return PlainLinear(weight.dequantize().to(device), bias)
