"""The protocol between the engine and its backends.

I images, N visual tokens an image, T tokens, B rows, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """Weights and a KV cache with slots on one device. Only one thread at a time may call it.

    Attributes:
        device, dtype: device and dtype of the computation.
        num_slots: sequences in the KV cache.
        context: maximum tokens of one slot, prompt and reply.
        kv_bytes_per_token: bytes of KV cache per token.
        chunk_tokens: prompt tokens to prefill at once while other requests decode; None for all.
        encodes_singly: True if images should be passed one by one, because each is encoded in short steps.
    """

    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def num_slots(self) -> int: ...  # noqa: D102
    @property
    def context(self) -> int: ...  # noqa: D102
    @property
    def kv_bytes_per_token(self) -> int: ...  # noqa: D102
    @property
    def chunk_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def encodes_singly(self) -> bool: ...  # noqa: D102

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Encode and project images: pixel_values (I, 3, H, W) in [0, 1] -> image_embeds (I, N, D), the return value.

        The caller may pause or abandon the work at each yield.
        """

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Prefill `embeds` (T, D) into `slot` at position `start`; return the last token's hidden state (1, D).

        The slot holds the first `start` tokens already.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, V) of hidden states (T, D) that :meth:`prefill_chunk` returned."""

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token in each of `slots`, at `positions`; valid until the next call.

        A slot may be given several times in a row, with consecutive positions: its tokens then follow one another, and
        each row has the logits after its own token. Positions that the caller discards afterwards are overwritten by
        later calls; until then nothing may attend to them.
        """

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Copy keys and values of the first `num_tokens` of slot `source` to slot `target`."""

    def check_weights(self) -> None:
        """Raise CheckpointError if a file that weights are mapped from has changed."""
