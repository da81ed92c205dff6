"""Linear layers of the encoder for many rows, by the compiled AMX kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.backends.native.kernels import PANEL, Epilogue, NativeKernels, from_panels, in_panels, native_kernels


class TileLinear:
    """A bfloat16 layer, optionally with exact GELU; it has the interface of ``linear.PackedLinear``.

    Args:
        kernels: from ``native_kernels``.
        weight: (out, in), multiples of 32.
        bias: (out,), or None.
        has_gelu: apply GELU to the outputs.
    """

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None, *, has_gelu: bool = False) -> None:
        self.out_features, self.in_features = weight.shape
        self.num_bytes, self.has_gelu = weight.nbytes, has_gelu
        self.bias = None if bias is None else bias.detach()
        self._kernels, self._panels = kernels, in_panels(weight.detach())
        self._bias = weight.new_zeros(len(weight), dtype=torch.float32) if bias is None else bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) bfloat16 -> (..., out), a new tensor."""
        y = x.new_empty(*x.shape[:-1], self.out_features)
        return self._applied(x, y, added=False)

    def panels(self, x: Tensor) -> Tensor:
        """(R, in) contiguous, at least one row, -> (out / 32, R, 32) of a layer without GELU."""
        y = x.new_empty(self.out_features // PANEL, len(x), PANEL)
        return self._kernels.linear(x, self._panels, self._bias, "panels", y)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out), which is overwritten if it is contiguous, plus the outputs of a layer without GELU."""
        return self._applied(x, other.contiguous(), added=True)

    def _applied(self, x: Tensor, y: Tensor, *, added: bool) -> Tensor:
        if x.numel():
            rows = x.reshape(-1, self.in_features).contiguous()
            epilogue: Epilogue = "added" if added else "gelu" if self.has_gelu else "plain"
            self._kernels.linear(rows, self._panels, self._bias, epilogue, y.view(-1, self.out_features))
        return y

    @property
    def layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as ``NativeKernels.ffn`` takes them."""
        return self._panels, self._bias

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        return from_panels(self._panels)

    def ffn(self, narrow: TileLinear, x: Tensor, other: Tensor) -> Tensor:
        """Add `narrow` of this layer's outputs for `x` (rows, in) to `other` (rows, in), which is overwritten."""
        return self._kernels.ffn(x, self.layer, narrow.layer, other)


def tile_linear(weight: Tensor, bias: Tensor | None, *, has_gelu: bool) -> TileLinear | None:
    """The layer, or None if the kernels do not support the dtype, device, CPU or shape."""
    is_whole = not any(size % PANEL for size in weight.shape)
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not is_whole:
        return None
    kernels = native_kernels()
    return None if kernels is None or not kernels.has_tiles else TileLinear(kernels, weight, bias, has_gelu=has_gelu)
