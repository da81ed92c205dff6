"""Image preprocessing: images to `pixel_values`, float32 (I, 3, H, W) in [0, 1].

Three ways to fit an image into H x W pixels:

- ``pad`` (default, as trained): centered on a black canvas of the target's shape, then resized; nothing is lost.
- ``crop`` (as in transformers' ``fast_vlm``): resized to cover the target, then center-cropped; sides are lost.
- ``stretch``: resized to the target without keeping the aspect ratio.

Sources: padding, apple/ml-fastvlm at 592b4ad, ``llava/mm_utils.py`` (``expand2square``, background of mean 0: black);
resizing, cropping and rescaling, transformers 5.23 ``image_transforms.py`` (PIL). No torchvision is used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastvlm.encoder_config import num_visual_tokens
from fastvlm.errors import ConfigError, ImageError
from fastvlm.images import DEFAULT_LIMITS, ImageLimits, open_image
from fastvlm.images.fitting import IMAGE_FITS, fit_image

__all__ = ["IMAGE_FITS", "ImageProcessor", "fit_image", "image_size_px"]

DEFAULT_IMAGE_SIZE_PX = 1024
DEFAULT_PATCH_SIZE_PX = 64  # pixels a side of one visual token: the encoder's stride

# What a file may say besides our own keys, and the only values that FastVLM has.
FIXED_KEYS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
}


_CALL_KEYS = frozenset({*FIXED_KEYS, "size", "crop_size"})
_OWN_KEYS = frozenset({"image_size", "image_fit", "patch_size"})


LARGEST_SIDE_PX = 4096  # a square of it is 4096 visual tokens and 200 MB of pixels


def image_size_px(value: Any, patch_size: int = DEFAULT_PATCH_SIZE_PX) -> tuple[int, int]:
    """(height, width) in pixels from an int (a square), a pair, or a ``{"height", "width"}`` dictionary.

    Raises:
        ConfigError: a side that is not a positive multiple of `patch_size` (the model's token count rounds up and
            transformers' rounds down, so only multiples mean the same everywhere).
    """
    if isinstance(value, dict) and {"height", "width"} <= set(value):
        value = (value["height"], value["width"])
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in pair):
        raise ConfigError(f"image_size is {value!r}; expected an int, or a pair (height, width), in pixels.")
    if max(pair) > LARGEST_SIDE_PX:
        raise ConfigError(f"image_size is {str(value)[:60]}; a side has at most {LARGEST_SIDE_PX} px.")
    for side in pair:
        if side < 1 or side % patch_size:
            below = max(side // patch_size, 1) * patch_size
            near = f"{below} and {below + patch_size}" if side > 0 else f"{patch_size} and {2 * patch_size}"
            raise ConfigError(
                f"image_size is {value!r}; each side must be a multiple of {patch_size} px, the encoder's stride. The "
                f"nearest are {near}."
            )
    return (pair[0], pair[1])


def _fit_name(value: Any) -> str:
    if value not in IMAGE_FITS:
        raise ConfigError(f"image_fit is {value!r}; known are {', '.join(IMAGE_FITS)}.")
    return str(value)


class ImageProcessor:
    """Images -> `pixel_values`, by PIL; :class:`fastvlm.FastVlmImageProcessor` is this for transformers.

    Args:
        image_size: pixels of the processed image: an int, or (height, width); multiples of `patch_size`.
        image_fit: ``"pad"``, ``"crop"`` or ``"stretch"``.
        patch_size: pixels a side of one visual token.
        resample: PIL's filter; 3 (bicubic) as trained.
        file_keys: the keys of a ``preprocessor_config.json`` (`size`, `crop_size`, `image_mean`, ...), as CLIP's image
            processor has them. A file without our own keys (such as a plain transformers checkpoint) gives the size by
            its `crop_size`, and is padded: that is what its weights were trained with.

    Attributes:
        image_limits: what a source may cost (:class:`fastvlm.images.ImageLimits`); not saved.

    Raises:
        ConfigError: a size that is not a multiple of the stride, an unknown fit, a file that is not FastVLM's.
    """

    known_file_keys: ClassVar[frozenset[str]] = _CALL_KEYS | _OWN_KEYS | {"resample"}

    def __init__(
        self,
        image_size: Any = None,
        image_fit: str | None = None,
        patch_size: int | None = None,
        resample: int | None = None,
        **file_keys: Any,
    ) -> None:
        _check_settings(file_keys, self.known_file_keys)
        self.patch_size = patch_size or DEFAULT_PATCH_SIZE_PX
        stated = image_size if image_size is not None else _stated_size(file_keys)
        self.image_size = image_size_px(stated, self.patch_size)
        self.image_fit = _fit_name("pad" if image_fit is None else image_fit)
        self.resample = int(Image.Resampling.BICUBIC if resample is None else resample)
        self.image_limits: ImageLimits = DEFAULT_LIMITS

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **settings: Any) -> Any:
        """Build from a file's dictionary and `settings`, which win; keys of other processors are dropped."""
        keys = {**image_processor_dict, **settings}
        processor = cls(**{key: value for key, value in keys.items() if key in cls.known_file_keys})
        return (processor, {}) if settings.get("return_unused_kwargs") else processor

    @property
    def size(self) -> dict[str, int]:
        """The size in the notation of CLIP's image processor."""
        return {"shortest_edge": max(self.image_size)}

    @property
    def crop_size(self) -> dict[str, int]:
        """The processed size, height and width in pixels."""
        return {"height": self.image_size[0], "width": self.image_size[1]}

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """See :meth:`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,
        *,
        image_size: Any = None,
        image_fit: str | None = None,
        return_tensors: str | None = "pt",
        **fixed: Any,
    ) -> Mapping[str, Any]:
        """`pixel_values`, float32 (I, 3, H, W) in [0, 1], of all images in the order given.

        Args:
            images: one source or a (nested) list of them; see :func:`fastvlm.images.open_image`.
            image_size, image_fit: for this call, instead of the processor's own.
            return_tensors: ``"pt"`` for torch, ``"np"`` for NumPy.
            fixed: CLIP's own settings (`do_rescale`, ...) are accepted with the values that FastVLM has.

        Raises:
            ImageError: no image, or one that cannot be opened.
            ConfigError: a size or fit that does not exist, a setting that FastVLM does not have.
        """
        _check_settings(fixed, _CALL_KEYS)
        if image_size is None and ({"size", "crop_size"} & set(fixed)):
            image_size = _stated_size(fixed)
        height, width = self.image_size if image_size is None else image_size_px(image_size, self.patch_size)
        fit = self.image_fit if image_fit is None else _fit_name(image_fit)
        sources = _flat(images)
        if not sources:
            raise ImageError("Got an empty list where at least one image was expected.")
        pixels = np.empty((len(sources), 3, height, width), dtype=np.float32)
        for source, planes in zip(sources, pixels, strict=True):
            self._write(source, planes, fit)
        return self._batch({"pixel_values": pixels}, return_tensors)

    def pixels(self, source: Any) -> Tensor:
        """Pixels of one image, float32 (3, H, W) in [0, 1], at the processor's own size and fit; raises ImageError."""
        planes = np.empty((3, *self.image_size), dtype=np.float32)
        self._write(source, planes, self.image_fit)
        return torch.from_numpy(planes)

    def _write(self, source: Any, planes: NDArray[np.float32], fit: str) -> None:
        """Open an image, fit it into `planes` (3, H, W) and scale it to [0, 1]."""
        image = open_image(source, limits=self.image_limits)
        fitted = fit_image(image, *planes.shape[1:], fit=fit, resample=self.resample)
        # uint8 / 255 in float32 equals transformers' float64 product for each of the 256 values. By bands, whose
        # values lie side by side: half the time of a transposed image's.
        for band, plane in zip(fitted.split(), planes, strict=True):
            np.divide(np.asarray(band), np.float32(255), out=plane, casting="unsafe")

    def _batch(self, data: dict[str, Any], return_tensors: str | None) -> Mapping[str, Any]:
        """`data`, NumPy arrays, as the requested tensor type."""
        if return_tensors != "pt":
            return data
        return {name: torch.from_numpy(array) for name, array in data.items()}

    def choose(self, image_size: Any = None, image_fit: str | None = None) -> None:
        """Change size or fit, as in the constructor; None keeps the current value.

        Raises:
            ConfigError: a side that is not a multiple of `patch_size`; an unknown fit.
        """
        if image_size is not None:
            self.image_size = image_size_px(image_size, self.patch_size)
        if image_fit is not None:
            self.image_fit = _fit_name(image_fit)

    def chosen(self, image_size: Any = None, image_fit: str | None = None) -> ImageProcessor:
        """A copy with another size or fit; see :meth:`choose`."""
        made = copy(self)
        made.choose(image_size, image_fit)
        return made

    def num_visual_tokens(self, image_size: Any = None) -> int:
        """Visual tokens of one processed image: the number of placeholders it takes in the text."""
        size = self.image_size if image_size is None else image_size_px(image_size, self.patch_size)
        return num_visual_tokens(*size, stride_px=self.patch_size)


def _stated_size(file_keys: dict[str, Any]) -> Any:
    """The size in CLIP's keys: the crop, else the shortest edge, else 1024."""
    crop, size = file_keys.get("crop_size"), file_keys.get("size")
    if crop is not None:
        return dict(crop) if not isinstance(crop, int) else crop
    if size is None:
        return DEFAULT_IMAGE_SIZE_PX
    return dict(size).get("shortest_edge", dict(size)) if not isinstance(size, int) else size


def _check_settings(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse unknown names, and values that would give other pixels than FastVLM's."""
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"The image processor has no setting {key!r}. Known are {', '.join(sorted(known))}.")
        if key in FIXED_KEYS and value is not None and not _same(value, FIXED_KEYS[key]):
            raise ConfigError(
                f"The image processor's {key} is {value!r}; FastVLM has {FIXED_KEYS[key]!r} (pixels in [0, 1], no "
                "normalisation). Is this the file of another model?"
            )


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    return bool(np.allclose(np.asarray(value, dtype=float), np.asarray(expected), rtol=0, atol=1e-6))


def _flat(images: Any) -> list[Any]:
    """The images in order, with nested lists flattened."""
    if isinstance(images, (list, tuple)):
        return [source for part in images for source in _flat(part)]
    return [images]
