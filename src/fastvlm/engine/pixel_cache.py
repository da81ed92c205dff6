"""Cache of preprocessed images, keyed by their encoded bytes.

Only encoded images are cached (bytes, files, URLs, data URIs), because equal bytes give equal pixels. Their bytes are
read each time, so a changed file is a new image. PIL images and arrays are always preprocessed.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from PIL import Image
from torch import Tensor

from fastvlm.engine.encoder_cache import EncoderCache, image_digest
from fastvlm.errors import ImageError
from fastvlm.images import encoded_bytes
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor

# Encoded image -> its pixels (3, H, W) in [0, 1], or an RGB image of the model's height and width.
ReadyImages: TypeAlias = Mapping[bytes, Image.Image | Tensor]

DIGESTS = "image_digests"  # an additional output of the image processor: a digest of each image's content


class PixelCache:
    """LRU cache of preprocessed images (3, H, W).

    Args:
        max_bytes: size limit; an image of 1024 px takes 12 MiB. 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self._pixels = EncoderCache(max_bytes)

    def clear(self) -> None:
        """Remove all entries."""
        self._pixels.clear()

    def over(self, processor: Processor, ready: ReadyImages | None = None) -> Processor:
        """A copy of `processor` whose image processor uses this cache.

        Args:
            processor: a :class:`fastvlm.FastVlmProcessor`.
            ready: decoded images by their encoded bytes.
        """
        if not hasattr(processor, "image_processor"):
            return processor
        caching = copy.copy(processor)
        inner = processor.image_processor
        caching.image_processor = cast("ImageProcessor", _CachingImageProcessor(inner, self._pixels, ready or {}))
        return caching

    def known(self, processor: Processor, contents: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Cached pixels (3, H, W) of those `contents` (encoded images) that are in the cache."""
        found = {content: self._pixels.peek(_digest(content, processor.image_processor)) for content in contents}
        return {content: pixels for content, pixels in found.items() if pixels is not None}


def _digest(content: bytes, image_processor: ImageProcessor, settings: Mapping[str, Any] | None = None) -> str:
    """Hash of an encoded image and of the preprocessing settings."""
    changed = sorted((key, value) for key, value in (settings or {}).items() if key != "return_tensors")
    how = (image_processor.image_size, image_processor.image_fit, image_processor.resample, changed)
    return hashlib.sha256(content + repr(how).encode()).hexdigest()


class _CachingImageProcessor:
    """Image processor with a cache: the same pixels, and :data:`DIGESTS` in addition."""

    def __init__(self, inner: ImageProcessor, known: EncoderCache, ready: ReadyImages) -> None:
        self._inner, self._known, self._ready = inner, known, ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Any, **settings: Any) -> Mapping[str, Any]:
        made = [self._made(source, settings) for source in _flat(images)]
        one = made[0][0][None]  # the usual case needs no copy
        return {
            "pixel_values": one if len(made) == 1 else torch.stack([pixels for pixels, _ in made]),
            DIGESTS: tuple(digest for _, digest in made),
        }

    def _made(self, source: Any, settings: Mapping[str, Any]) -> tuple[Tensor, str]:
        """Pixels (3, H, W) and digest of one image."""
        content = encoded_bytes(source, limits=self._inner.image_limits)
        if content is None:
            pixels = self._processed(source, settings)
            return pixels, image_digest(pixels)
        digest = _digest(content, self._inner, settings)
        known = self._known.get(digest)
        if known is not None:
            return known, digest
        pixels = self._processed_bytes(source, content, settings)
        self._known.put(digest, pixels, is_own=True)
        return pixels, digest

    def _processed_bytes(self, source: Any, content: bytes, settings: Mapping[str, Any]) -> Tensor:
        """Preprocess the bytes that were hashed, not the file, which may have changed."""
        ready = self._ready.get(content)
        if ready is not None:
            return ready if isinstance(ready, Tensor) else self._processed(ready, settings)
        try:
            return self._processed(content, settings)
        except ImageError:
            if isinstance(source, (str, os.PathLike)):
                self._processed(source, settings)  # raises an error with the image's name
            raise

    def _processed(self, source: Any, settings: Mapping[str, Any]) -> Tensor:
        pixels: Tensor = self._inner([source], **settings)["pixel_values"][0]
        return pixels


def _flat(images: Any) -> Sequence[Any]:
    """The images in order, with nested lists flattened."""
    if isinstance(images, (list, tuple)):
        return [source for part in images for source in _flat(part)]
    return [images]
