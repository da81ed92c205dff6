"""Checked tensor addresses for the compiled kernels, which do not check sizes themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> int:
    """Address of a contiguous, non-empty CPU tensor of this `dtype` and `shape`.

    Args:
        name: its name in messages.
        tensor: must outlive the use of the address.
        dtype: expected dtype.
        shape: expected shape; None matches any size but 0, and no shape at all matches any.

    Raises:
        ValueError: another tensor; the message says what was got and what was expected.
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
