"""Linear layers with 8-bit weights, one scale for each output channel.

Weights: ``w ~ values * scale``, values in -127..127, so the error of a weight is at most half its channel's scale.
Two kernels read them:

- *dynamic* (VNNI or AMX): each row of activations becomes 8 bits too, with a scale of its own, so that a row's result
  does not depend on its neighbours in the batch. The activations are uint8 around 128: for int8 activations oneDNN 3.12
  has no fast kernel without AMX and takes a reference loop, thousands of times slower.
- *weight-only*: bfloat16 activations; the fallback, and the choice where activations have outliers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.linear import PlainLinear

__all__ = [
    "Int8DynamicLinear",
    "Int8Weight",
    "Int8WeightOnlyLinear",
    "int8_linear",
    "int8_weight_only_linear",
    "quantise_int8",
    "quantise_rows",
]

LARGEST = 127  # of a weight; -128 is left out, so that the range is symmetric
ROW_ZERO_POINT = 128  # what stands for 0 in uint8 activations
# A row's largest value becomes 126.9: its scale may be rounded to bfloat16 (2 ** -9), and 127.5 would not fit any more.
ROW_LARGEST = 126.9
TINIEST_ROW = 1e-30  # the largest value of a row of zeros, for its scale


@dataclass(frozen=True)
class Int8Weight:
    """`values` (out, in) int8 in -127..127 and `scales` (out,) float32: the weight is ``values * scales[:, None]``."""

    values: Tensor
    scales: Tensor

    def dequantise(self) -> Tensor:
        """The weight (out, in) in float32."""
        return self.values.float() * self.scales[:, None]


def quantise_int8(weight: Tensor) -> Int8Weight:
    """`weight` (out, in), any floating dtype, rounded to the nearest; the error is at most half a scale."""
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return Int8Weight((weight / scales[:, None]).round_().to(torch.int8), scales)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (R, in) around 128 and scales (R, 1) in the dtype of `x` (R, in): ``x ~ (values - 128) * scales``.

    A row that is not finite has a scale that is not finite, so its result shows it.
    """
    largest = x.abs().amax(-1, keepdim=True).float()  # seven times faster than `vector_norm` over rows
    scales = largest.clamp_min_(TINIEST_ROW).div_(ROW_LARGEST).to(x.dtype)
    # Conversion cuts the fraction off; of positive numbers, with a half added, it rounds to the nearest.
    return x.float().div(scales.float()).add_(ROW_ZERO_POINT + 0.5).to(torch.uint8), scales


class Int8DynamicLinear:
    """Products of uint8 activations and int8 weights, summed in 32 bits, scaled back by row and by output channel."""

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.values.shape
        self.num_bytes = weight.values.nbytes + weight.scales.nbytes
        self._packed = torch.ops.onednn.qlinear_prepack(weight.values, None)
        self._scales, self._zero_points = weight.scales, torch.zeros(self.out_features, dtype=torch.long)
        self._bias = None if bias is None else bias.detach().float()
        self._offset = torch.tensor(ROW_ZERO_POINT + 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return self._one_row(x) if x.shape[0] == 1 else self._many_rows(x)

    def _one_row(self, row: Tensor) -> Tensor:
        """As `_many_rows` with a fifth of the calls around the kernel: one scale can be a number and is fused."""
        largest = float(torch.linalg.vector_norm(row, math.inf))
        scale = max(largest, TINIEST_ROW) / ROW_LARGEST
        values = torch.add(self._offset, row, alpha=1 / scale).to(torch.uint8)
        return self._multiply(values, scale, self._bias, row.dtype)

    def _many_rows(self, rows: Tensor) -> Tensor:
        if not rows.shape[0]:
            return rows.new_empty(0, self.out_features)
        values, scales = quantise_rows(rows)
        y = self._multiply(values, 1.0, None, rows.dtype).mul_(scales)
        return y if self._bias is None else y.add_(self._bias)

    def _multiply(self, values: Tensor, scale: float, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            values,
            scale,
            ROW_ZERO_POINT,
            self._packed,
            self._scales,
            self._zero_points,
            bias,
            1.0,  # scale and zero point of the output, which is floating
            0,
            dtype,
            "none",
            [],
            "",
        )
        return y


class Int8WeightOnlyLinear:
    """int8 weights, bfloat16 activations; float32 ones are rounded (torch's float32 kernel is seven times slower).

    torch's kernel reads past the end of a row whose length is no multiple of 16 (a crash, in 2.13), so rows are padded
    with zeros to one.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.values.shape
        self._padding = -self.in_features % 16
        self._values, self._scales = F.pad(weight.values, (0, self._padding)), weight.scales.to(torch.bfloat16)
        self.num_bytes = self._values.nbytes + self._scales.nbytes
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self._padding:
            rows = F.pad(rows, (0, self._padding))
        y = torch._weight_int8pack_mm(rows, self._values, self._scales)
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self._bias is None else y + self._bias.to(x.dtype)


def int8_linear(
    weight: Tensor | Int8Weight, bias: Tensor | None
) -> Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear:
    """8-bit weights, and 8-bit activations where the CPU multiplies these; `weight` is rounded here or was before."""
    quantised = weight if isinstance(weight, Int8Weight) else quantise_int8(weight)
    if cpu_kernels().has_packed_int8 and quantised.values.device.type == "cpu":
        return Int8DynamicLinear(quantised, bias)
    return int8_weight_only_linear(quantised, bias)


def int8_weight_only_linear(weight: Tensor | Int8Weight, bias: Tensor | None) -> Int8WeightOnlyLinear | PlainLinear:
    """8-bit weights, bfloat16 activations; away from a CPU the rounded weight in bfloat16."""
    quantised = weight if isinstance(weight, Int8Weight) else quantise_int8(weight)
    if quantised.values.device.type == "cpu":
        return Int8WeightOnlyLinear(quantised, bias)
    return PlainLinear(quantised.dequantise().to(torch.bfloat16), bias)
