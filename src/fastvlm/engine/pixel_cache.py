"""Cache of preprocessed images, keyed by their encoded bytes.

Only encoded images are cached (bytes, files, URLs, data URIs), because equal bytes give equal pixels. Their bytes are
read each time, so a changed file is a new image. PIL images and arrays are always preprocessed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from PIL import Image
from torch import Tensor

from fastvlm.engine.encoder_cache import EncoderCache, image_digest
from fastvlm.errors import ImageError
from fastvlm.images import encoded_bytes
from fastvlm.processing.image_processor import ImageProcessor

# Encoded image -> its pixels (3, H, W) in [0, 1], or an RGB image of the model's height and width.
ReadyImages: TypeAlias = Mapping[bytes, Image.Image | Tensor]


class PixelCache(EncoderCache):
    """LRU cache of preprocessed images (3, H, W).

    Args:
        max_bytes: size limit; an image of 1024 px takes 12 MiB. 0 disables the cache.
    """

    def pixels(self, source: Any, processor: ImageProcessor, ready: ReadyImages) -> tuple[Tensor, str]:
        """Pixels (3, H, W) of an image and a digest of its content; see :meth:`ImageProcessor.pixels` for errors.

        Args:
            source: anything that :func:`fastvlm.images.open_image` opens.
            processor: preprocesses what is not cached.
            ready: images that are decoded already, by their encoded bytes.
        """
        content = encoded_bytes(source, limits=processor.image_limits)
        if content is None:
            pixels = processor.pixels(source)
            return pixels, image_digest(pixels)
        digest = _digest(content, processor)
        known = self.get(digest)
        if known is not None:
            return known, digest
        pixels = _preprocessed(source, content, processor, ready)
        self.put(digest, pixels, is_own=True)
        return pixels, digest

    def known(self, processor: ImageProcessor, contents: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Cached pixels (3, H, W) of those `contents` (encoded images) that are in the cache."""
        found = {content: self.peek(_digest(content, processor)) for content in contents}
        return {content: pixels for content, pixels in found.items() if pixels is not None}


def _digest(content: bytes, processor: ImageProcessor) -> str:
    """Hash of an encoded image and of the preprocessing settings."""
    how = (processor.image_size, processor.image_fit, processor.resample)
    return hashlib.sha256(content + repr(how).encode()).hexdigest()


def _preprocessed(source: Any, content: bytes, processor: ImageProcessor, ready: ReadyImages) -> Tensor:
    """Preprocess the bytes that were hashed, not the file, which may have changed."""
    decoded = ready.get(content, content)
    if isinstance(decoded, Tensor):
        return decoded
    try:
        return processor.pixels(decoded)
    except ImageError:
        if isinstance(source, (str, os.PathLike)):
            processor.pixels(source)  # raises an error with the image's name
        raise
