"""Images that were made ready before are not decoded and resized again: known by the bytes that they came in.

Only what comes encoded is remembered (bytes, files, URLs, data URIs): equal bytes give equal pixels. They are read each
time, so a file that has changed is a new image. PIL images and arrays are always made ready anew.
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

__all__ = ["DIGESTS", "PixelCache", "ReadyImages"]

# Encoded image -> its pixels (3, H, W) in [0, 1], or an RGB image of the model's height and width.
ReadyImages: TypeAlias = Mapping[bytes, Image.Image | Tensor]

DIGESTS = "image_digests"  # beside `pixel_values`: what stands for each image's content


class PixelCache:
    """Remembers processed images (3, H, W).

    Args:
        max_bytes: limit of what is kept; an image of 1024 px takes 12 MiB. 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._pixels = EncoderCache(max_bytes)

    def clear(self) -> None:
        """Forget all images."""
        self._pixels.clear()

    def over(self, processor: Processor, ready: ReadyImages | None = None) -> Processor:
        """`processor` with this memory in front of its image processor; the given one stays as it is.

        Args:
            processor: a :class:`fastvlm.FastVlmProcessor`.
            ready: images that need not be decoded here, by the bytes that they came in.
        """
        if not hasattr(processor, "image_processor"):
            return processor
        remembering = copy.copy(processor)
        inner = processor.image_processor
        remembering.image_processor = cast("ImageProcessor", _Remembering(inner, self._pixels, ready or {}))
        return remembering

    def known(self, processor: Processor, contents: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Those of `contents` (encoded images) whose pixels (3, H, W) are remembered."""
        found = {content: self._pixels.peek(_digest(content, processor.image_processor)) for content in contents}
        return {content: pixels for content, pixels in found.items() if pixels is not None}


def _digest(content: bytes, image_processor: ImageProcessor, settings: Mapping[str, Any] | None = None) -> str:
    """What stands for an encoded image and the way in which it is made ready."""
    changed = sorted((key, value) for key, value in (settings or {}).items() if key != "return_tensors")
    how = (image_processor.image_size, image_processor.image_fit, image_processor.resample, changed)
    return hashlib.sha256(content + repr(how).encode()).hexdigest()


class _Remembering:
    """In place of an image processor: the same pixels, and :data:`DIGESTS` beside them."""

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
        """From the bytes that the digest is of, not from a file that may be another by now."""
        ready = self._ready.get(content)
        if ready is not None:
            return ready if isinstance(ready, Tensor) else self._processed(ready, settings)
        try:
            return self._processed(content, settings)
        except ImageError:
            if isinstance(source, (str, os.PathLike)):
                self._processed(source, settings)  # its error has the image's name
            raise

    def _processed(self, source: Any, settings: Mapping[str, Any]) -> Tensor:
        pixels: Tensor = self._inner([source], **settings)["pixel_values"][0]
        return pixels


def _flat(images: Any) -> Sequence[Any]:
    """Sources in order, whatever the nesting of lists."""
    if isinstance(images, (list, tuple)):
        return [source for part in images for source in _flat(part)]
    return [images]
