"""Linear layers of the encoder, for hundreds of rows, by the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from fastvlm.backends.native.kernels import HEAD_WIDTH, Epilogue, NativeKernels, native_kernels
from fastvlm.backends.native.packed_layer import PackedLayer


class EncoderLinear:
    """A packed layer, optionally with exact GELU; it has the interface of ``linear.PackedLinear``.

    Args:
        kernels: from ``native_kernels``.
        weight: (out, in), of a dtype and shape that the kernels take.
        bias: (out,), or None.
        has_gelu: apply GELU to the outputs.
    """

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None, *, has_gelu: bool = False) -> None:
        self.out_features, self.in_features = weight.shape
        self.num_bytes, self.has_gelu = weight.nbytes, has_gelu
        self.bias = None if bias is None else bias.detach()
        self.kernels = kernels
        self.layer = PackedLayer.of(weight.detach(), self.bias, kernels.panel_layout(weight.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) of the weight's dtype -> (..., out), a new tensor."""
        y = x.new_empty(*x.shape[:-1], self.out_features)
        return self._applied(x, y, added=False)

    def heads(self, x: Tensor) -> Tensor:
        """(R, in) contiguous, at least one row, -> (out / 32, R, 32) of a layer without GELU."""
        y = x.new_empty(self.out_features // HEAD_WIDTH, len(x), HEAD_WIDTH)
        return self.kernels.linear(x, self.layer, "heads", y)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out), which is overwritten if it is contiguous, plus the outputs of a layer without GELU."""
        return self._applied(x, other.contiguous(), added=True)

    def _applied(self, x: Tensor, y: Tensor, *, added: bool) -> Tensor:
        if x.numel():
            rows = x.reshape(-1, self.in_features).contiguous()
            epilogue: Epilogue = "added" if added else "gelu" if self.has_gelu else "plain"
            self.kernels.linear(rows, self.layer, epilogue, y.view(-1, self.out_features))
        return y

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        return self.layer.dense()

    def ffn(self, narrow: EncoderLinear, x: Tensor, other: Tensor) -> Tensor:
        """Add `narrow` of this layer's outputs for `x` (rows, in) to `other` (rows, in), which is overwritten."""
        return self.kernels.ffn(x, self.layer, narrow.layer, other)


def encoder_linear(weight: Tensor, bias: Tensor | None, *, has_gelu: bool) -> EncoderLinear | None:
    """The layer, or None if the kernels do not support the dtype, device, CPU or shape."""
    kernels = native_kernels(weight.dtype)
    if kernels is None or weight.device.type != "cpu" or weight.dtype not in kernels.dtypes:
        return None
    if not kernels.panel_layout(weight.dtype).takes(*weight.shape):
        return None
    return EncoderLinear(kernels, weight, bias, has_gelu=has_gelu)
