"""The encoder with 8-bit FFNs: nine tenths of its products, twice as fast where a CPU has VNNI or AMX.

Weights have a scale an output channel. Activations have fixed scales, measured beforehand on images: finding the
range of a hidden map and rounding it afterwards costs most of what 8 bits gain, while a fixed scale lets the kernel
round what it holds in registers, GELU included. What is larger than anything measured is cut off.

Channels of an FFN's input differ in range by orders of magnitude, but share one scale. So each is divided by a power of
two, which the 7x7 before it and the weight behind it take up exactly (after SmoothQuant, arXiv 2211.10438, section 4).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.int8 import quantize_int8
from fastvlm.engine.vision import Convolution, FastEncoder, Ffn, tile_rows

__all__ = ["FfnRanges", "quantize_encoder"]

_ZERO = 128  # stands for 0 in the uint8 input of an FFN, whose range is symmetric
_LARGEST = 127.0


@dataclass(frozen=True)
class FfnRanges:
    """What was seen of an FFN: largest magnitude of each input channel (C,), least and largest hidden value."""

    inputs: Tensor
    hidden_low: float
    hidden_high: float


def quantize_encoder(encoder: FastEncoder, images: Tensor) -> FastEncoder:
    """An encoder like `encoder` with 8-bit FFNs, for which `images` (B, 3, H, W) in [0, 1] set the ranges.

    Some tens of images of the kind that will be asked about, at their size. Where the CPU does not multiply 8 bits,
    `encoder` itself is returned. What is no FFN is shared with `encoder`.
    """
    if encoder.device.type != "cpu" or not cpu_kernels().has_packed_int8:
        return encoder
    ranges = _measure(encoder, images)
    quantized = copy.copy(encoder)
    quantized.steps = [
        _Int8Ffn(step, ranges[index]) if isinstance(step, Ffn) else step for index, step in enumerate(encoder.steps)
    ]
    return quantized


@torch.no_grad()
def _measure(encoder: FastEncoder, images: Tensor) -> dict[int, FfnRanges]:
    """Ranges of every FFN, by its place in `encoder.steps`; image by image, so that memory stays small."""
    ranges: dict[int, FfnRanges] = {}
    for image in images.split(1):  # type: ignore[no-untyped-call]
        x = image.to(encoder.dtype).permute(0, 2, 3, 1)
        for index, step in enumerate(encoder.steps):
            if isinstance(step, Ffn):
                ranges[index] = _wider(ranges.get(index), _ranges(step, x))
            x = step(x)
    return ranges


def _ranges(ffn: Ffn, x: Tensor) -> FfnRanges:
    rows = ffn.conv(x).flatten(0, 2)
    hidden = [part.aminmax() for part in map(ffn.widen, torch.split(rows, tile_rows(x)))]
    lows, highs = [float(part.min) for part in hidden], [float(part.max) for part in hidden]
    return FfnRanges(rows.abs().amax(0).float(), min(0.0, *lows), max(0.0, *highs))  # zero has a value of its own


def _wider(one: FfnRanges | None, other: FfnRanges) -> FfnRanges:
    if one is None:
        return other
    return FfnRanges(
        torch.maximum(one.inputs, other.inputs),
        min(one.hidden_low, other.hidden_low),
        max(one.hidden_high, other.hidden_high),
    )


class _Int8Ffn:
    """``x + ConvFFN(x)``, in place, with 8-bit products."""

    def __init__(self, ffn: Ffn, ranges: FfnRanges) -> None:
        weight = ffn.widen.dense().float()
        factors = _balance(ranges.inputs, weight.abs().amax(0))
        self._conv = _divided(ffn.conv, factors)
        self._input_scale = max(float((ranges.inputs / factors).max()), 1e-30) / _LARGEST
        self._hidden_scale = max(ranges.hidden_high - ranges.hidden_low, 1e-30) / 255
        self._hidden_zero = round(-ranges.hidden_low / self._hidden_scale)
        self._widen = _Int8Product(weight * factors, ffn.widen.bias)
        self._narrow = _Int8Product(ffn.narrow.dense().float(), ffn.narrow.bias)
        self._half = torch.tensor(_ZERO + 0.5)  # conversion to uint8 cuts the fraction off

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C)."""
        inputs, outputs = self._conv(x).flatten(0, 2), x.flatten(0, 2)
        size = tile_rows(x)
        for rows, residual in zip(torch.split(inputs, size), torch.split(outputs, size), strict=True):
            residual.add_(self._product(rows))
        return x

    def _product(self, rows: Tensor) -> Tensor:
        values = torch.add(self._half, rows, alpha=1 / self._input_scale).clamp_(0, 255).to(torch.uint8)
        scale, zero = self._hidden_scale, self._hidden_zero
        hidden = self._widen(values, self._input_scale, _ZERO, scale, zero, torch.uint8, "gelu")
        return self._narrow(hidden, scale, zero, 1.0, 0, rows.dtype, "none")


class _Int8Product:
    """uint8 (R, in) times an int8 weight, with fixed scales."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rounded = quantize_int8(weight)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded.values, None)
        self._scales = rounded.scales
        self._zero_points = torch.zeros(len(weight), dtype=torch.long)
        self._bias = None if bias is None else bias.float()

    def __call__(
        self, x: Tensor, scale: float, zero: int, to_scale: float, to_zero: int, dtype: torch.dtype, activation: str
    ) -> Tensor:
        """(R, out): uint8 with `to_scale` and `to_zero`, or of a floating `dtype`."""
        weight = (self._packed, self._scales, self._zero_points)
        algorithm = "none" if activation == "gelu" else ""
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, scale, zero, *weight, self._bias, to_scale, to_zero, dtype, activation, [], algorithm
        )
        return y


def _balance(inputs: Tensor, weights: Tensor) -> Tensor:
    """Powers of two (C,) to divide the input's channels by; half of the difference in range goes to the weight."""
    tiny = 1e-12
    factors = (inputs.clamp_min(tiny) / weights.clamp_min(tiny)).sqrt().log2().round().exp2()
    return torch.where((inputs > tiny) & (weights > tiny), factors, 1.0)


def _divided(conv: Convolution, factors: Tensor) -> Convolution:
    """`conv` with each output channel divided by a power of two, which loses nothing."""
    kernels = [
        ((weight / factors[:, None, None, None]).to(weight), None if bias is None else (bias / factors).to(bias))
        for weight, bias in conv.kernels
    ]
    return conv.with_kernels(kernels)
