"""Linear layers whose weight is packed once by oneDNN; plain ones where it has no kernel.

Shapes: a weight is (out, in), a bias (out,), inputs are (..., in), outputs (..., out) in the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.linear import Activation, Linear, PlainLinear, joined, joined_biases
from fastvlm.backends.native.encoder_linear import EncoderLinear, encoder_linear
from fastvlm.backends.native.kernels import native_kernels
from fastvlm.backends.page_release import release_pages

# Values that the buffer of `PackedLinears` holds: what a layer has (gate and up of the 7B: 135.8 million), less than
# a head (136.1 million in the 0.5B).
LARGEST_BUFFER = 136_000_000


class PackedLinear:
    """oneDNN's linear kernel on a weight that was packed once into the kernel's layout.

    ``F.linear`` packs a bfloat16 weight again at every call, which at one row doubles the time. The bias is added in
    registers, and GELU too, except with AMX, where a separate pass is faster. The packed weight replaces the plain one
    (:meth:`dense` restores it, bit for bit) and serves any number of rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        self.out_features, self.num_bytes = weight.shape[0], weight.nbytes
        self.activation = activation
        self.bias = None if bias is None else bias.detach().to(weight.dtype)
        self._has_tiles = cpu_kernels().has_tiles(weight.dtype)
        self._fused: Activation = "none" if self._has_tiles else activation
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        release_pages(weight)

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
    native = native_kernels(x.dtype)
    if native is not None and native.takes(x):
        return native.gelu_(x)
    y: Tensor = torch.ops.aten.gelu_(x)
    return y


def packed_linear(weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> PackedLinear | PlainLinear:
    """A layer in the weight's dtype, packed where that works (float32 and bfloat16 on a CPU with oneDNN).

    A plain layer holds `weight` itself, so callers that reuse its memory must check `has_packed` first.
    """
    if weight.device.type == "cpu" and cpu_kernels().has_packed(weight.dtype):
        return PackedLinear(weight, bias, activation)
    return PlainLinear(weight, bias, activation)


class PackedLinears:
    """Makes packed layers that compute in `dtype`, for weights of any dtype.

    Packing copies, so concatenation and conversion need memory only until then. One buffer serves all layers, because
    fresh memory for each takes as long as packing. A head gets its own memory, so that the buffer stays small.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._buffer = dtype, torch.empty(0, dtype=dtype)

    def __call__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:
        """See :class:`LinearMaker`."""
        bias = joined_biases([None if bias is None else bias.detach().to(self._dtype) for bias in biases])
        weight = self._ready(weights, is_head=is_head)
        for part in weights:
            release_pages(part)
        return packed_linear(weight, bias)

    def _ready(self, weights: Sequence[Tensor], *, is_head: bool) -> Tensor:
        """`weights` in one tensor of `dtype`: the buffer's, where packing copies it afterwards."""
        if len(weights) == 1 and weights[0].dtype == self._dtype:
            return weights[0].detach()
        num_rows, num_values = sum(map(len, weights)), sum(weight.numel() for weight in weights)
        if is_head or num_values > LARGEST_BUFFER or not cpu_kernels().has_packed(self._dtype):
            return joined(weights).to(self._dtype)
        if self._buffer.numel() < num_values:
            self._buffer = torch.empty(num_values, dtype=self._dtype)
        turned = self._buffer[:num_values].view(num_rows, -1)
        for part, weight in zip(torch.split(turned, [len(weight) for weight in weights]), weights, strict=True):
            part.copy_(weight.detach())
        return turned


def many_rows_linear(
    weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> PackedLinear | PlainLinear | EncoderLinear:
    """Like :func:`packed_linear`, for hundreds of rows: with whichever kernel is faster on this CPU."""
    native = encoder_linear(weight, bias, has_gelu=activation == "gelu")
    if native is not None:
        return native
    if weight.dtype == torch.float32 and cpu_kernels().has_fast_plain_float32:
        return PlainLinear(weight, bias, activation)
    return packed_linear(weight, bias, activation)
