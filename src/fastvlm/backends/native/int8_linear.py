"""Linear layers with rounded rows and 8-bit weights, by the compiled kernels (``cpp/int8_linear.hpp``).

A row x is rounded to ``low + scale * value`` with values in 0..255. Sums of products are exact, so every level has the
same ones.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.native.address import address
from fastvlm.backends.native.kernels import NativeKernels, all_kernels

_DEPTH = 4  # `Uint8Product::kDepth` in cpp/products.hpp


class _Layer(ctypes.Structure):
    """`Int8Layer` in cpp/int8_linear.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "scales", "totals", "bias")),
        *((name, ctypes.c_ssize_t) for name in ("inputs", "outputs")),
    )


class NativeInt8Linear:
    """A linear layer on rows of float32 or bfloat16.

    Args:
        kernels: of any level.
        values: (out, in) int8; those of two neighboring inputs have magnitudes of at most 128 together.
        scales: (out,) float32: the weight is ``values * scales[:, None]``.
        bias: (out,) float32.
    """

    def __init__(self, kernels: NativeKernels, values: Tensor, scales: Tensor, bias: Tensor) -> None:
        self._kernels = kernels
        self.out_features, self.in_features = values.shape
        panel = kernels.function("int8_panel_outputs")()
        missing = -self.out_features % panel
        padded = F.pad(values, (0, -self.in_features % kernels.function("int8_input_unit")(), 0, missing))
        panels = padded.view(-1, panel, padded.shape[1] // _DEPTH, _DEPTH).permute(0, 2, 1, 3).contiguous()
        totals = scales * values.sum(1)
        self._held = (panels, *(F.pad(each, (0, missing)).contiguous() for each in (scales, totals, bias)))
        self._layer = _Layer(*(tensor.data_ptr() for tensor in self._held), self.in_features, self.out_features)
        self.num_bytes = sum(tensor.nbytes for tensor in self._held)

    def compute(self, rows: Tensor, out: Tensor, *, is_added: bool) -> None:
        """Write the outputs (R, out) for `rows` (R, in) to `out` of the same dtype, or add them."""
        if len(rows):
            *pointers, dtype, threads = self._arguments(rows, out, self.out_features)
            self._kernels.function("int8_linear")(*pointers, ctypes.byref(self._layer), is_added, dtype, threads)

    def add_ffn(self, narrow: NativeInt8Linear, rows: Tensor, out: Tensor) -> None:
        """Add ``narrow(gelu(self(rows)))`` (R, narrow's out) for `rows` (R, in) to `out` of the same dtype."""
        if len(rows):
            *pointers, dtype, threads = self._arguments(rows, out, narrow.out_features)
            layers = ctypes.byref(self._layer), ctypes.byref(narrow._layer)
            self._kernels.function("int8_ffn")(*pointers, *layers, dtype, threads)

    def _arguments(self, rows: Tensor, out: Tensor, outputs: int) -> tuple[int, int, int, int, int]:
        """Addresses of `rows` and `out`, the number of rows, the dtype's number and the number of threads."""
        number = self._kernels.dtype_number(rows.dtype)
        dtype = torch.float32 if number is None else rows.dtype
        pointers = address("rows", rows, dtype, None, self.in_features), address("out", out, dtype, len(rows), outputs)
        return *pointers, len(rows), number or 0, torch.get_num_threads()


def int8_kernels() -> NativeKernels | None:
    """The best kernels of this machine; None if there are none."""
    return next(iter(all_kernels()), None)
