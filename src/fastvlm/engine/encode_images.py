"""A prompt's images to what the decoder reads, each encoded once while a cache keeps it, in steps that can be left.

I images, N visual tokens an image, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastvlm.engine.encoder_cache import EncoderCache
from fastvlm.engine.prompt_inputs import PreparedPrompt

__all__ = ["Encode", "SlicedEncode", "encode_images"]

Encode = Callable[[Tensor], Tensor]  # pixel_values (I, 3, H, W) in [0, 1] -> image_embeds (I, N, D)


@runtime_checkable
class SlicedEncode(Protocol):
    """An :data:`Encode` whose work can be left alone, or dropped, after each step of it."""

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Image embeds (I, N, D) of pixel_values (I, 3, H, W)."""

    def slices(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """The same, as what the generator returns at its end."""


def encode_images(
    prompt: PreparedPrompt, first: int, encode: Encode, cache: EncoderCache
) -> Generator[None, None, Tensor | None]:
    """Embeds (I, N, D) of the images from `first` on, as what the generator returns; None if there are none.

    A sliced `encode` gets one image at a time, so that its steps are short and an image is known as soon as it is
    done; another one gets all that are new. What is dropped halfway leaves nothing in `cache`.
    """
    digests, pixel_values = prompt.digests[first:], prompt.pixel_values
    if not digests or pixel_values is None:
        return None
    known = {digest: cache.get(digest) for digest in digests}
    new = [first + digests.index(digest) for digest, embeds in known.items() if embeds is None]
    for rows in _groups(new, encode):
        encoded = yield from _encoded(pixel_values[rows], encode)
        for row, embeds in zip(rows, encoded, strict=True):
            cache.put(prompt.digests[row], embeds)
            known[prompt.digests[row]] = embeds
        yield
    stacked = torch.stack([known[digest] for digest in digests])  # type: ignore[misc]  # none is None now
    if stacked.device.type == "cuda":
        torch.cuda.synchronize(stacked.device)  # for the stopwatch: work on a GPU is only queued
    return stacked


def _groups(rows: list[int], encode: Encode) -> list[list[int]]:
    """Which images are encoded together."""
    if isinstance(encode, SlicedEncode):
        return [[row] for row in rows]
    return [rows] if rows else []


def _encoded(pixel_values: Tensor, encode: Encode) -> Generator[None, None, Tensor]:
    if isinstance(encode, SlicedEncode):
        return (yield from encode.slices(pixel_values))
    return encode(pixel_values)
