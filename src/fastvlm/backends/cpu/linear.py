"""Linear layers for inference: made once from a weight, called many times. Plain, or packed for the CPU.

A *factory* turns (weight, bias) into a callable; the decoder and the encoder take factories and do not know the kernels
behind them. Every factory works on every machine: where a kernel is missing, the next best takes its place.

Shapes: a weight is (out, in), a bias (out,), inputs are (..., in), outputs (..., out) in the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.mapped_memory import give_back
from fastvlm.backends.native.amx_linear import TileLinear, tile_linear
from fastvlm.backends.native.kernels import native_kernels

__all__ = [
    "Activation",
    "Linear",
    "LinearFactory",
    "PackedLinear",
    "PlainLinear",
    "gelu_",
    "many_rows_linear",
    "packed_linear",
    "packed_linear_in",
    "plain_linear",
]

# Values that the buffer of `packed_linear_in` holds: what a layer has (gate and up of the 7B: 135.8 million), less than
# a head (136.1 million in the 0.5B).
LARGEST_BUFFER = 136_000_000

Activation = Literal["none", "gelu"]
Linear = Callable[[Tensor], Tensor]


class LinearFactory(Protocol):
    """Makes a linear layer; it may keep `weight` or make its own form of it."""

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The layer of `weight` (out, in) and `bias` (out,) or None."""


class PlainLinear:
    """``F.linear``, then exact GELU if asked for: any device, any floating dtype, and the measure of the others.

    Computes in the weight's dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        self.weight, self.activation = weight.detach(), activation
        self.bias = None if bias is None else bias.detach().to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return (F.gelu(y) if self.activation == "gelu" else y).to(x.dtype)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out) plus the outputs; `other` may be overwritten."""
        return other.add_(self(x))

    @property
    def num_bytes(self) -> int:
        """Memory that the weight takes."""
        return self.weight.nbytes

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        return self.weight


class PackedLinear:
    """oneDNN's inner product on a weight that was laid out once in the order in which the kernel reads it.

    ``F.linear`` lays a bfloat16 weight out again at every call, which at one row doubles the time. The bias is added
    while the result is in registers, and GELU too, but behind products in tile registers (AMX), where a pass of its own
    takes less time. The packed weight takes the place of the plain one (:meth:`dense` gets it back, bit for bit), and
    serves any number of rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        self.out_features, self.num_bytes = weight.shape[0], weight.nbytes
        self.activation = activation
        self.bias = None if bias is None else bias.detach().to(weight.dtype)
        self._has_tiles = cpu_kernels().has_tiles(weight.dtype)
        self._fused: Activation = "none" if self._has_tiles else activation
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        give_back(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) of the weight's dtype -> (..., out)."""
        if not x.numel():  # oneDNN refuses empty tensors
            return x.new_empty(*x.shape[:-1], self.out_features)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, self._fused, [], "none")
        return y if self._fused == self.activation else gelu_(y)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out) plus the outputs, of a layer without activation; `other` may be overwritten."""
        if not self._has_tiles or not x.numel():
            return other.add_(self(x))
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, "add")
        return y

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        weight: Tensor = self._packed.to_dense()
        return weight


def gelu_(x: Tensor) -> Tensor:
    """Exact GELU, in place."""
    native = native_kernels()
    if native is not None and native.takes(x):
        return native.gelu_(x)
    y: Tensor = torch.ops.aten.gelu_(x)
    return y


def plain_linear(weight: Tensor, bias: Tensor | None) -> PlainLinear:
    """``F.linear`` on the weight as it is."""
    return PlainLinear(weight, bias)


def packed_linear(weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> PackedLinear | PlainLinear:
    """The weight in its own dtype, packed where that works (float32 and bfloat16 on a CPU with oneDNN)."""
    if weight.device.type == "cpu" and cpu_kernels().has_packed(weight.dtype):
        return PackedLinear(weight, bias, activation)
    return PlainLinear(weight, bias, activation)


def packed_linear_in(dtype: torch.dtype) -> LinearFactory:
    """A factory as :func:`packed_linear` that computes in `dtype`, whatever the weights are in.

    Packing copies, so the turned weight needs its memory only until then: all of them take turns in one buffer. Fresh
    memory for each costs as much time as the packing. A head gets memory of its own, so that the buffer stays small.
    """
    buffer = torch.empty(0, dtype=dtype)

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        nonlocal buffer
        bias = None if bias is None else bias.to(dtype)
        if weight.dtype == dtype or weight.device.type != "cpu" or not cpu_kernels().has_packed(dtype):
            return packed_linear(weight.to(dtype), bias)
        if weight.numel() > LARGEST_BUFFER:
            turned = weight.to(dtype)
        else:
            if buffer.numel() < weight.numel():
                buffer = torch.empty(weight.numel(), dtype=dtype)
            turned = buffer[: weight.numel()].view(weight.shape).copy_(weight)
        give_back(weight)
        return PackedLinear(turned, bias)

    return make


def many_rows_linear(
    weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> PackedLinear | PlainLinear | TileLinear:
    """As :func:`packed_linear`, for hundreds of rows at a time: by whatever the CPU is faster with."""
    if weight.dtype == torch.float32 and cpu_kernels().has_fast_plain_float32:
        return PlainLinear(weight, bias, activation)
    tiles = tile_linear(weight, bias, has_gelu=activation == "gelu")
    return packed_linear(weight, bias, activation) if tiles is None else tiles
