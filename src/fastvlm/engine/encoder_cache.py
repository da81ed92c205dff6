"""Image encoding in interruptible steps, with an LRU cache of image embeddings that is keyed by image content.

I images, N visual tokens an image, D decoder width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.engine.prompt_inputs import PromptInputs


def image_digest(pixels: Tensor) -> str:
    """Hash of an image's values (3, H, W), shape and dtype."""
    data = pixels.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(data.shape)} {data.dtype} ".encode())
    digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class EncoderCache:
    """LRU cache of image embeddings (N, D), keyed by :func:`image_digest` and limited to `max_bytes`.

    Args:
        max_bytes: limit for all cached tensors together; 0 disables the cache.

    `num_hits` and `num_misses` count the results of :meth:`get`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_hits = self.num_misses = 0
        if max_bytes < 0:
            raise UsageError(f"max_bytes of the image cache is {max_bytes}; expected 0 or more.")
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._embeds: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._embeds)

    def get(self, digest: str) -> Tensor | None:
        """The embeddings (N, D) of an image, marked as used now, or None."""
        if digest not in self._embeds:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._embeds.move_to_end(digest)
        return self._embeds[digest]

    def peek(self, digest: str) -> Tensor | None:
        """Like :meth:`get`, without counting and without marking as used."""
        return self._embeds.get(digest)

    def put(self, digest: str, embeds: Tensor, *, is_own: bool = False) -> None:
        """Cache `embeds` (N, D): a copy, unless the tensor owns its memory (`is_own`).

        A tensor larger than the limit is not cached.
        """
        self._drop(digest)
        if embeds.nbytes > self.max_bytes:
            return
        # A row of a batch would keep the whole batch in memory.
        embeds = embeds.detach() if is_own else embeds.detach().clone()
        self._embeds[digest] = embeds
        self.num_bytes += embeds.nbytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._embeds)))

    def clear(self) -> None:
        """Remove all entries."""
        self._embeds.clear()
        self.num_bytes = 0

    def _drop(self, digest: str) -> None:
        old = self._embeds.pop(digest, None)
        self.num_bytes -= 0 if old is None else old.nbytes


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
