"""Image processor for transformers: base class, files and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from fastvlm.processing.image_processor import FIXED_KEYS, ImageProcessor


class FastVlmImagesKwargs(ImagesKwargs, total=False):  # type: ignore[misc,call-arg]  # transformers is untyped
    """Settings of loading and calling a processor in addition to transformers' own."""

    image_size: int | list[int] | tuple[int, int] | None
    image_fit: str | None
    patch_size: int | None


class FastVlmImageProcessor(ImageProcessor, BaseImageProcessor):  # type: ignore[misc]  # transformers is untyped
    """Images -> `pixel_values`, by PIL.

    See :class:`fastvlm.processing.image_processor.ImageProcessor` for its arguments, attributes and errors.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    valid_kwargs = FastVlmImagesKwargs
    known_file_keys = frozenset(FastVlmImagesKwargs.__annotations__)

    def __init__(
        self,
        image_size: Any = None,
        image_fit: str | None = None,
        patch_size: int | None = None,
        resample: int | None = None,
        **file_keys: Any,
    ) -> None:
        BaseImageProcessor.__init__(self)
        ImageProcessor.__init__(self, image_size, image_fit, patch_size, resample, **file_keys)

    def _batch(self, data: dict[str, Any], return_tensors: str | None) -> Mapping[str, Any]:
        return BatchFeature(data, tensor_type=return_tensors)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The file's content: a CLIP image processor's, for plain transformers, plus FastVLM's own keys."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            **FIXED_KEYS,
            "do_center_crop": True,
            "resample": self.resample,
            "size": self.size,
            "crop_size": self.crop_size,
            "image_fit": self.image_fit,
            "image_size": list(self.image_size),
            "patch_size": self.patch_size,
        }
