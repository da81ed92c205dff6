"""Image encoding in interruptible steps, with a cache of image embeddings.

I images, N visual tokens an image, D decoder width.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.engine.encoder_cache import EncoderCache
from fastvlm.engine.prompt_inputs import PromptInputs


def encode_images(
    prompt: PromptInputs, first: int, backend: Backend, cache: EncoderCache
) -> Generator[None, None, Tensor | None]:
    """Return the embeddings (I, N, D) of the images from index `first`; None if there are none.

    A backend that encodes in short steps gets one image at a time, so that each image is cached as soon as it is done;
    other backends get all new images at once. An interrupted run leaves no partial entry in `cache`.
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
        torch.cuda.synchronize(stacked.device)  # for the timings: GPU work is asynchronous
    return stacked
