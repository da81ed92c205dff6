"""Linear layers by the compiled kernels (``cpp/decoder.cpp``), on weights used in place.

32, 16, 8 and 4 bits, any number of rows, inputs and outputs of float32 or bfloat16. Weights are neither packed nor
copied: several weights over the same input stay where they are, for example in a mapped file, and one call multiplies
all of them.

Sums are float32. With AMX many rows are multiplied in bfloat16, and few rows of 8 and 4 bits are rounded to two 8-bit
terms each, whose products are exact. Elsewhere bfloat16 weights are widened, and rows are rounded to 16 bits with a
scale each for weights of 8 bits, to 13 (16 with AVX-512) for few rows and 4 bits. A row's result does not depend on the
other rows, but its last bit may depend on their number.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvlm.backends.linear import Linear
from fastvlm.backends.native.address import address
from fastvlm.backends.native.kernels import NativeKernels, native_kernels
from fastvlm.backends.native.library import SWITCH
from fastvlm.backends.page_release import release_pages
from fastvlm.errors import ConfigError
from fastvlm.formats.rounding import (
    FILE_BLOCK,
    GROUP_SIZES,
    Int4Weight,
    Int8Weight,
    RoundedWeight,
    quantize_int4,
    quantize_int8,
)

_BFLOAT16, _INT8, _INT4, _FLOAT32 = range(4)  # `Kind` in cpp/linear_weights.hpp


_FORMS = {True: torch.float32, False: torch.bfloat16}


class NativeMatrix(ctypes.Structure):
    """`Matrix` in cpp/linear_weights.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias")),
        *((name, ctypes.c_ssize_t) for name in ("outputs", "kind", "group")),
    )


class NativeLinearWeights(ctypes.Structure):
    """`LinearWeights` in cpp/linear_weights.hpp."""

    _fields_ = (
        ("parts", ctypes.POINTER(NativeMatrix)),
        *((name, ctypes.c_ssize_t) for name in ("num_parts", "inputs", "outputs")),
    )


class NativeLinear:
    """A linear layer of one or several weights over the same input; their outputs are concatenated.

    Args:
        kernels: from :func:`native_kernels`.
        weights: bfloat16 or float32 (out, in) contiguous, or rounded ones; all of one kind. AMX takes no float32.
        biases: (out,) of any floating dtype, or None, for each.

    Raises:
        ValueError: weights of several kinds or widths, or tensors of other dtypes or shapes.
    """

    def __init__(
        self, kernels: NativeKernels, weights: Sequence[Tensor | RoundedWeight], biases: Sequence[Tensor | None]
    ) -> None:
        self._kernels = kernels
        self.in_features = _inputs(weights[0])
        held = [_tensors(weight) for weight in weights]
        floats = [None if bias is None else bias.detach().float().contiguous() for bias in biases]
        self._held = held, floats  # what the pointers point to
        dtypes = kernels.dtypes
        matrices = [
            _matrix(weight, self.in_features, bias, dtypes) for weight, bias in zip(weights, floats, strict=True)
        ]
        if len({matrix.kind for matrix in matrices}) != 1:
            raise ValueError(f"weights are {[type(weight).__name__ for weight in weights]}; expected one kind.")
        self.out_features = sum(matrix.outputs for matrix in matrices)
        self.num_bytes = sum(tensor.nbytes for tensors in held for tensor in tensors)
        parts = (NativeMatrix * len(matrices))(*matrices)
        self.native_weights = NativeLinearWeights(parts, len(matrices), self.in_features, self.out_features)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in), one of the kernels' dtypes, -> (..., out)."""
        rows = x.reshape(-1, self.in_features).contiguous()
        y = rows.new_empty(len(rows), self.out_features)
        if len(rows):
            self._kernels.multiply(self.native_weights, rows, y)
        return y.view(*x.shape[:-1], self.out_features)


class NativeLinears:
    """Makes :class:`NativeLinear` layers where :func:`has_native_linears` is True; nothing is concatenated or copied.

    Args:
        form: (weight (out, in), is_head) -> the operand: the weight in bfloat16 or float32, or rounded.
        dtype: of the layers' inputs and outputs.
    """

    def __init__(self, form: Callable[[Tensor, bool], Tensor | RoundedWeight], dtype: torch.dtype) -> None:
        self._form, self._dtype = form, dtype

    def __call__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:
        """See :class:`fastvlm.backends.linear.LinearMaker`."""
        formed = [self._form(weight.detach(), is_head) for weight in weights]
        for weight, form in zip(weights, formed, strict=True):
            if form is not weight and not (isinstance(form, Tensor) and form.dtype == weight.dtype):
                release_pages(weight)
        layer = native_linear(formed, biases, self._dtype)
        if layer is None:
            shapes = [list(weight.shape) for weight in weights]
            raise ConfigError(f"Weights of {shapes} are not supported by the compiled kernels. Set {SWITCH}=torch.")
        return layer


def has_native_linears(dtype: torch.dtype) -> bool:
    """True if this machine has kernels for linear layers that compute in `dtype`."""
    return linear_kernels(dtype) is not None


def linear_kernels(dtype: torch.dtype) -> NativeKernels | None:
    """The kernels of this machine for `dtype`, if there are any and their linear layers are right."""
    kernels = native_kernels(dtype)
    return kernels if kernels is not None and linears_are_right(kernels, dtype) else None


@functools.cache
def linears_are_right(kernels: NativeKernels, dtype: torch.dtype) -> bool:
    """True if linear layers of 16, 8 and 4 bits give torch's results, for few and many rows."""
    x = (torch.arange(40 * 96) * 7 % 16 - 7).reshape(40, 96).to(dtype)
    weight, bias = (torch.arange(70 * 96) * 11 % 16 - 8).reshape(70, 96).bfloat16(), torch.arange(70) / 8
    for form in (weight, quantize_int8(weight), quantize_int4(weight)):
        dense = form.float() if isinstance(form, Tensor) else form.dequantize().float()
        linear = NativeLinear(kernels, [form, form], [bias, None])
        for rows in (x[:1], x[:9], x):
            expected = torch.cat([rows.float() @ dense.T + bias, rows.float() @ dense.T], -1)
            if not torch.allclose(linear(rows).float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
                return False
    return True


def native_linear(
    weights: Sequence[Tensor | RoundedWeight], biases: Sequence[Tensor | None], dtype: torch.dtype
) -> NativeLinear | None:
    """The linear layer of `weights` in `dtype`, or None if there are no kernels here that support these weights."""
    kernels = linear_kernels(dtype)
    if kernels is None or not all(_is_taken(weight, kernels) for weight in weights):
        return None
    is_one_kind = len({(type(weight), _inputs(weight)) for weight in weights}) == 1
    return NativeLinear(kernels, weights, biases) if is_one_kind else None


def _is_taken(weight: Tensor | RoundedWeight, kernels: NativeKernels) -> bool:
    if isinstance(weight, Int4Weight) and (weight.block != FILE_BLOCK or weight.group_size not in GROUP_SIZES):
        return False
    tensors = _tensors(weight)
    is_here = all(tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() for tensor in tensors)
    return is_here and (not isinstance(weight, Tensor) or weight.dtype in (torch.bfloat16, *kernels.dtypes))


def _inputs(weight: Tensor | RoundedWeight) -> int:
    return weight.shape[1] if isinstance(weight, Tensor) else weight.in_features


def _tensors(weight: Tensor | RoundedWeight) -> tuple[Tensor, ...]:
    """The values, and the scales if there are any."""
    return (weight.detach(),) if isinstance(weight, Tensor) else tuple(weight.tensors.values())


def _matrix(
    weight: Tensor | RoundedWeight, inputs: int, bias: Tensor | None, dtypes: Sequence[torch.dtype]
) -> NativeMatrix:
    """The description of `weight` (out, `inputs`) and its float32 `bias` (out,) for kernels of `dtypes`."""
    if isinstance(weight, Tensor):
        is_wide = weight.dtype == torch.float32 and torch.float32 in dtypes
        outputs, kind, group = len(weight), _FLOAT32 if is_wide else _BFLOAT16, 0
        values, scales = address("weight", weight.detach(), _FORMS[is_wide], outputs, inputs), None
    elif isinstance(weight, Int8Weight):
        outputs, kind, group = weight.out_features, _INT8, 0
        values = address("values", weight.values, torch.int8, outputs, inputs)
        scales = address("scales", weight.scales, torch.float32, outputs)
    else:
        outputs, kind, group = weight.out_features, _INT4, weight.group_size
        if weight.block != FILE_BLOCK or group not in GROUP_SIZES:
            raise ValueError(f"4-bit weights are in blocks of {weight.block} and groups of {group}; expected others.")
        padded = -(-outputs // FILE_BLOCK) * FILE_BLOCK
        values = address("packed", weight.packed, torch.uint8, padded, inputs // 2)
        scales = address("scales_and_zeros", weight.scales_and_zeros, torch.bfloat16, inputs // group, padded, 2)
    at = None if bias is None else address("bias", bias, torch.float32, outputs)
    return NativeMatrix(values, scales, at, outputs, kind, group)
