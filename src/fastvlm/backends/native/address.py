"""Addresses that compiled kernels are given: each of a tensor whose dtype, shape and layout were looked at just before.

The kernels read and write as far as the sizes say that they are called with, without a check of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["address"]


def address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> int:
    """Where the numbers of `tensor` lie: a contiguous tensor of the CPU, of this `dtype`, that is not empty.

    Args:
        name: what messages call it.
        tensor: has to outlive the use of the address.
        dtype: expected.
        shape: expected; None is any size but 0, and no shape at all is any.

    Raises:
        ValueError: another tensor; it says what was got and what was expected.
    """
    is_shape = not shape or (
        tensor.dim() == len(shape)
        and all(wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True))
    )
    is_here = tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0
    if tensor.dtype != dtype or not is_shape or not is_here:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        found = f"{tensor.dtype} on {tensor.device}, strides {tensor.stride()}, shape {tuple(tensor.shape)}"
        kind = f"contiguous {str(dtype).removeprefix('torch.')} tensor of the CPU that is not empty"
        raise ValueError(f"{name} is {found}; expected a {kind}{f', of shape ({sizes})' if shape else ''}.")
    return tensor.data_ptr()
