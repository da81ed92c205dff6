"""Decodes the encoded images of a prompt in a pool of processes, before the prompt is prepared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from fastvlm.engine.prompt_inputs import ChatPrompt
from fastvlm.images.pool import Fitting, ImagePool
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.prompt import IMAGE_KEYS


def encoded_images(prompt: Any) -> list[bytes]:
    """Distinct images given as bytes in messages, in order; empty for other prompts."""
    return list(dict.fromkeys(_encoded(prompt)))


def _encoded(prompt: Any) -> Iterator[bytes]:
    messages = prompt.messages if isinstance(prompt, ChatPrompt) else prompt
    for message in messages if isinstance(messages, (list, tuple)) else ():
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
    """Decode images for the `ready` argument of :meth:`fastvlm.Engine.prepare`.

    The images of one prompt are decoded one after the other, so that one request occupies at most one worker.

    Args:
        contents: encoded images.
        image_processor: gives the target size, fit and limits.
        pool: decodes the images that are not cached.
        known: returns the cached pixels of the given images; holding them here protects them from eviction.
        client: the client of the request; the pool serves clients in rotation.

    Raises:
        ImageError: an image that cannot be decoded within the limits.
    """
    ready: dict[bytes, Image.Image | Tensor] = {}
    fitting = fitting_of(image_processor)
    for content in contents:
        ready.update(await known([content]))  # one by one: another request may have cached it meanwhile
        if content not in ready:
            ready[content] = await pool.fit(content, fitting, image_processor.image_limits, client)
    return ready


def fitting_of(image_processor: ImageProcessor) -> Fitting:
    """Size, fit and filter of `image_processor`, as the pool's workers take them."""
    height, width = image_processor.image_size
    return Fitting(height, width, image_processor.image_fit, image_processor.resample)
