"""The encoded images of a prompt, decoded by a pool's processes before the prompt is made ready in this one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from fastvlm.images.pool import Fitting, ImagePool
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.prompt import IMAGE_KEYS

__all__ = ["decode_images", "encoded_images"]


def encoded_images(prompt: Any) -> list[bytes]:
    """The images that stand in messages as bytes, each once, in order; none for a prompt that is no messages."""
    return list(dict.fromkeys(_encoded(prompt)))


def _encoded(prompt: Any) -> Iterator[bytes]:
    for message in prompt if isinstance(prompt, (list, tuple)) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for item in content if isinstance(content, (list, tuple)) else ():
            if isinstance(item, Mapping):
                yield from (item[key] for key in IMAGE_KEYS if isinstance(item.get(key), bytes))


async def decode_images(
    contents: Iterable[bytes],
    image_processor: ImageProcessor,
    pool: ImagePool,
    known: Callable[[Iterable[bytes]], Awaitable[Mapping[bytes, Tensor]]],
    client: str = "",
) -> dict[bytes, Image.Image | Tensor]:
    """What :meth:`fastvlm.Engine.prepare` takes as `ready`.

    The images of one prompt are decoded one after the other, so that one request has one worker at most.

    Args:
        contents: encoded images.
        image_processor: how they are fitted, within which limits.
        pool: what decodes those that are not known.
        known: which of them are remembered, with their pixels; the caller holds them, so they cannot leave meanwhile.
        client: whose images they are; the pool serves clients in rotation.

    Raises:
        ImageError: one that cannot be decoded within the limits.
    """
    ready: dict[bytes, Image.Image | Tensor] = {}
    height, width = image_processor.image_size
    fitting = Fitting(height, width, image_processor.image_fit, image_processor.resample)
    for content in contents:
        ready.update(await known([content]))  # asked one by one: another request may have brought it meanwhile
        if content not in ready:
            ready[content] = await pool.fit(content, fitting, image_processor.image_limits, client)
    return ready
