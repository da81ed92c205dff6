"""Parses device and dtype names."""

from __future__ import annotations

import torch

from fastvlm.errors import UsageError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """`device` after a check, or the first available of cuda, mps, cpu.

    Raises:
        UsageError: an unknown device, or one that this machine does not have.
    """
    if device is None or device == "auto":
        kinds = ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())
        return torch.device(next((kind for kind, is_there in kinds if is_there), "cpu"))
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; expected 'cpu', 'cuda', 'cuda:1', 'mps'.") from error
    if asked.type == "cuda" and not (torch.cuda.is_available() and (asked.index or 0) < torch.cuda.device_count()):
        raise UsageError(f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices.")
    if asked.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device is 'mps', which this machine does not have.")
    return asked


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from itself or its name; None (the checkpoint's own) for None and "auto".

    Raises:
        UsageError: a dtype that FastVLM does not support.
    """
    if dtype is None or dtype == "auto":
        return None
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype if dtype in _DTYPES.values() else None
    if found is None:
        raise UsageError(f"dtype is {str(dtype)!r}; expected one of auto, {', '.join(_DTYPES)}.")
    return found
