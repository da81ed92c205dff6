"""A prompt's images to what the decoder reads, each encoded once while a cache keeps it, in steps that can be left.

I images, N visual tokens an image, D decoder width.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.engine.encoder_cache import EncoderCache
from fastvlm.engine.prompt_inputs import PreparedPrompt

__all__ = ["encode_images"]


def encode_images(
    prompt: PreparedPrompt, first: int, backend: Backend, cache: EncoderCache
) -> Generator[None, None, Tensor | None]:
    """Embeds (I, N, D) of the images from `first` on, as what the generator returns; None if there are none.

    A backend that encodes in short steps gets one image at a time, so that an image is known as soon as it is done;
    another one gets all that are new. What is dropped halfway leaves nothing in `cache`.
    """
    digests, pixel_values = prompt.digests[first:], prompt.pixel_values
    if not digests or pixel_values is None:
        return None
    known = {digest: cache.get(digest) for digest in digests}
    new = [first + digests.index(digest) for digest, embeds in known.items() if embeds is None]
    groups = [[row] for row in new] if backend.encodes_singly else [new] if new else []
    for rows in groups:
        encoded = yield from backend.encode(pixel_values[rows])
        for row, embeds in zip(rows, encoded, strict=True):
            cache.put(prompt.digests[row], embeds)
            known[prompt.digests[row]] = embeds
        yield
    stacked = torch.stack([known[digest] for digest in digests])  # type: ignore[misc]  # none is None now
    if stacked.device.type == "cuda":
        torch.cuda.synchronize(stacked.device)  # for the stopwatch: work on a GPU is only queued
    return stacked
