"""Linear layers with 8-bit weights and one scale per output channel (``formats/rounding.py``).

Two kernels:

- *dynamic* (VNNI or AMX): each row of activations is rounded with its own scale, so that its result does not depend on
  the other rows of the batch. If the activations have outliers, a second 8-bit term holds the rest; it takes about half
  as long again. The terms are uint8 around 128, because oneDNN 3.12 has no fast kernel for int8 activations without AMX
  and uses a reference loop, thousands of times slower.
- *weight-only*: bfloat16 activations; used on CPUs without VNNI, and where activations have outliers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.linear import PlainLinear
from fastvlm.backends.page_release import release_pages
from fastvlm.formats.rounding import Int8Weight, quantize_int8

__all__ = [
    "Int8DynamicLinear",
    "Int8Weight",
    "Int8WeightOnlyLinear",
    "int8_linear",
    "int8_weight_only_linear",
    "quantize_int8",
    "quantize_rows",
    "rounded_to_int8",
]

ROW_ZERO_POINT = 128  # what stands for 0 in uint8 activations
ROW_LARGEST = 127.0  # what a row's largest value becomes
SECOND_STEPS = 254.0  # steps of the second term in one of the first
TINIEST_ROW = 1e-30  # the largest value of a row of zeros, for its scale
# From so many rows on, turning the weight into floats and multiplying is faster than the weight-only kernel, whose
# time grows with the rows (AMD Zen 3, float32: level between 16 and 32 rows, 1.8 times at 290; docs/performance.md).
MANY_ROWS = 24
CHUNK_BYTES = 2048  # for each input, of the outputs that are turned into floats at a time: 2 MB at 1024 inputs
ROUNDED_VALUES = 1 << 22  # of a weight, that are turned into float32 at a time: 16 MB


def quantize_rows(x: Tensor, num_terms: int = 2) -> tuple[Tensor, Tensor]:
    """Terms uint8 (num_terms R, in) around 128, first ones first, and scales (R, 1) float32 of `x` (R, in).

    ``x ~ (first - 128 + (second - 128) / 254) * scales``. A row that is not finite has a scale that is not finite, so
    its result shows it.
    """
    x = x.float()  # first: whatever follows is faster in float32, and exact
    scales = x.abs().amax(-1, keepdim=True).clamp_min_(TINIEST_ROW).div_(ROW_LARGEST)
    return _terms(x.div(scales).add_(ROW_ZERO_POINT + 0.5), num_terms), scales


def _terms(shifted: Tensor, num_terms: int) -> Tensor:
    """Terms (num_terms R, in) of `shifted` (R, in) float32, values over scale plus 128.5; it is overwritten.

    Conversion cuts the fraction off; of positive numbers, with a half added, it rounds to the nearest. What it cut off,
    0 to 1, is -0.5 to 0.5 of the first term's step.
    """
    if num_terms == 1:
        return shifted.to(torch.uint8)
    num_rows, width = shifted.shape
    terms = torch.empty(2 * num_rows, width, dtype=torch.uint8)
    first = terms[:num_rows].copy_(shifted)
    terms[num_rows:].copy_(shifted.sub_(first).mul_(SECOND_STEPS).add_(ROW_ZERO_POINT + 0.5 - SECOND_STEPS / 2))
    return terms


class Int8DynamicLinear:
    """Products of uint8 terms and int8 weights, summed in 32 bits, scaled back by row and by output channel.

    `num_terms` is 1 or 2, None for what the shape tells: 2 for what neither narrows nor widens to twice, that is, the
    layers of attention. These are an eighth of a decoder's weights and, with 1, a third of its error.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None, num_terms: int | None = None) -> None:
        self.out_features, self.in_features = weight.values.shape
        self.num_bytes = weight.values.nbytes + weight.scales.nbytes
        self._packed = torch.ops.onednn.qlinear_prepack(weight.values, None)
        release_pages(weight.values)
        self._scales, self._zero_points = weight.scales, torch.zeros(self.out_features, dtype=torch.long)
        self._num_terms = num_terms or (2 if self.in_features <= self.out_features < 2 * self.in_features else 1)
        self._bias = self._shared_bias = None if bias is None else bias.detach().float()
        if self._bias is not None and self._num_terms == 2:
            # The kernel adds a bias to either term, of which the second counts 1 / 254.
            self._shared_bias = self._bias * (SECOND_STEPS / (SECOND_STEPS + 1))
        self._offset = torch.tensor(ROW_ZERO_POINT + 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return self._one_row(x) if x.shape[0] == 1 else self._many_rows(x)

    def _one_row(self, row: Tensor) -> Tensor:
        """As `_many_rows` with fewer calls around the kernel: one scale can be a number, and is fused."""
        low, high = torch.aminmax(row)  # a third of the time of a norm
        scale = max(float(high), -float(low), TINIEST_ROW) / ROW_LARGEST
        # In float32: a number and a bfloat16 row give bfloat16, whose steps around 128 are as large as a term's.
        terms = _terms(torch.add(self._offset, row.float(), alpha=1 / scale), self._num_terms)
        if self._num_terms == 1:
            return self._multiply(terms, scale, self._bias, row.dtype)
        y = self._multiply(terms, scale, self._shared_bias, torch.float32)
        return torch.add(y[:1], y[1:], alpha=1 / SECOND_STEPS).to(row.dtype)

    def _many_rows(self, rows: Tensor) -> Tensor:
        num_rows = rows.shape[0]
        if not num_rows:
            return rows.new_empty(0, self.out_features)
        terms, scales = quantize_rows(rows, self._num_terms)
        y = self._multiply(terms, 1.0, None, torch.float32)
        if self._num_terms == 2:
            y = y[:num_rows].add_(y[num_rows:], alpha=1 / SECOND_STEPS)
        y = y.mul_(scales)
        return (y if self._bias is None else y.add_(self._bias)).to(rows.dtype)

    def _multiply(self, terms: Tensor, scale: float, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(num_terms R, out) of `dtype`."""
        weight = (self._packed, self._scales, self._zero_points)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            terms, scale, ROW_ZERO_POINT, *weight, bias, 1.0, 0, dtype, "none", [], ""
        )
        return y


class Int8WeightOnlyLinear:
    """int8 weights, bfloat16 activations; float32 ones are rounded (torch's float32 kernel is seven times slower).

    For many rows chunks of the weight are turned into floats and multiplied: bfloat16 where the CPU multiplies it,
    float32 elsewhere. torch's kernel reads past the end of a row whose length is not a multiple of 16 (a crash, in
    2.13), so rows are padded with zeros to one.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.values.shape
        self._padding = -self.in_features % 16
        self._values = F.pad(weight.values, (0, self._padding)) if self._padding else weight.values
        self._exact_scales, self._scales = weight.scales, weight.scales.to(torch.bfloat16)
        self.num_bytes = self._values.nbytes + self._exact_scales.nbytes + self._scales.nbytes
        self._bias = None if bias is None else bias.detach()
        self._many_rows_dtype = cpu_kernels().many_rows_dtype

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) float32 or bfloat16 -> (..., out)."""
        rows = x.reshape(-1, self.in_features)
        y = self._few_rows(rows) if len(rows) < MANY_ROWS else self._many_rows(rows.to(self._many_rows_dtype))
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self._bias is None else y + self._bias.to(x.dtype)

    def _few_rows(self, rows: Tensor) -> Tensor:
        rows = rows.to(torch.bfloat16)
        if self._padding:
            rows = F.pad(rows, (0, self._padding))
        return torch._weight_int8pack_mm(rows, self._values, self._scales)

    def _many_rows(self, rows: Tensor) -> Tensor:
        chunk = CHUNK_BYTES // rows.element_size()
        y = rows.new_empty(len(rows), self.out_features)
        for start in range(0, self.out_features, chunk):
            part = self._values[start : start + chunk, : self.in_features].to(rows.dtype)
            torch.mm(rows, part.T, out=y[:, start : start + chunk])
        return y.mul_(self._exact_scales)


def int8_linear(
    weight: Tensor | Int8Weight, bias: Tensor | None
) -> Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear:
    """8-bit weights, and 8-bit activations where the CPU multiplies these; `weight` is rounded here or was before."""
    quantized = weight if isinstance(weight, Int8Weight) else rounded_to_int8(weight)
    if cpu_kernels().has_packed_int8 and quantized.values.device.type == "cpu":
        return Int8DynamicLinear(quantized, bias)
    return int8_weight_only_linear(quantized, bias)


def int8_weight_only_linear(weight: Tensor | Int8Weight, bias: Tensor | None) -> Int8WeightOnlyLinear | PlainLinear:
    """8-bit weights, bfloat16 activations; away from a CPU the rounded weight in bfloat16."""
    quantized = weight if isinstance(weight, Int8Weight) else rounded_to_int8(weight)
    if quantized.values.device.type == "cpu":
        return Int8WeightOnlyLinear(quantized, bias)
    return PlainLinear(quantized.dequantize().to(torch.bfloat16), bias)


def rounded_to_int8(weight: Tensor) -> Int8Weight:
    """As :func:`quantize_int8`, some rows at a time: the float32 copies of a whole head would be the largest memory."""
    rows = max(1, ROUNDED_VALUES // weight.shape[1])
    parts = [quantize_int8(part) for part in torch.split(weight.detach(), rows)]
    release_pages(weight)
    return Int8Weight(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))
