"""NumPy arrays and torch tensors -> PIL images of mode L, RGB or RGBA."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.images.pixels import scaled_to_bytes


def image_from_array(source: Any, name: str) -> Image.Image:
    """The image in an array or tensor: HxW, HxWxC or CxHxW with C of 1, 3 or 4.

    Raises:
        ImageError: a layout or a range that is ambiguous; `name` is how the error calls the array.
    """
    if hasattr(source, "detach"):  # a torch tensor, perhaps on a GPU, perhaps bfloat16 (which NumPy lacks)
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    return Image.fromarray(_as_bytes(_channels_last(np.asarray(source), name), name))


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """HxW, or HxWxC with C of 3 or 4, contiguous."""
    if array.size == 0:
        raise ImageError(f"{name} is empty; an image has at least one pixel.")
    if array.ndim == 4:
        raise ImageError(f"{name} is a batch. Pass its images one by one, as a list.")
    if array.ndim not in {2, 3}:
        raise ImageError(f"{name} has {array.ndim} axes; expected HxW, HxWxC or CxHxW.")
    if array.ndim == 3:
        first, last = array.shape[0] in {1, 3, 4}, array.shape[2] in {1, 3, 4}
        if first == last:
            problem = "may be HxWxC or CxHxW" if first else "has no axis of 1, 3 or 4 channels, first or last"
            raise ImageError(f"{name} {problem}. Pass a PIL image, or an array whose channel axis is clear.")
        array = np.moveaxis(array, 0, 2) if first else array
        array = array[:, :, 0] if array.shape[2] == 1 else array
    return np.ascontiguousarray(array)


def _as_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 of the same shape; floats must lie in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return scaled_to_bytes(array)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also refuses NaN
            raise ImageError(f"{name} ranges from {low} to {high}; floats must lie in [0, 1]: divide or clip.")
        scaled: np.ndarray = np.rint(array * 255.0).astype(np.uint8)
        return scaled
    raise ImageError(f"{name} has no range that is certain; expected uint8, uint16, bool, or floats in [0, 1].")
