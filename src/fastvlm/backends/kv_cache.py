"""Keys and values of the tokens that the decoder has seen, in a fixed number of slots.

Memory is claimed at once and, on a CPU, taken only as it is written: a slot for the whole context costs what its
longest request needs. S slots, K key/value heads, C context in tokens, E head width.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

from fastvlm.config import DecoderConfig

__all__ = ["KeyValueCache"]

# Memory of this process alone; Windows' anonymous maps are that without flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class KeyValueCache:
    """`layers`: for each layer a tensor (S, 2 K, C, E), the keys of all heads and then their values; zeros at first.

    Keys and values lie in one tensor so that a new token's are written at once.

    Args:
        config: of the decoder: layers, key/value heads, head width.
        num_slots: requests at the same time.
        context: tokens a slot can hold.
        dtype, device: of the decoder.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_slots, self.context = num_slots, context
        self.bytes_per_token = config.kv_bytes_per_token(dtype.itemsize)
        shape = (num_slots, 2 * config.num_key_value_heads, context, config.head_dim)
        self.layers = [_zeros(shape, dtype, torch.device(device)) for _ in range(config.num_hidden_layers)]
        self.slots = [[layer[slot] for layer in self.layers] for slot in range(num_slots)]  # views, made once

    @property
    def num_bytes(self) -> int:
        """Bytes claimed in all."""
        return self.bytes_per_token * self.num_slots * self.context

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Let `target` begin with the first `num_tokens` of `source`."""
        if source == target:
            return
        for tensor in self.layers:
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system's untouched pages, which become memory when they are written.

    They have to be zeros: what masked attention multiplies by nothing must not be NaN. And small pages: each head's few
    hundred tokens of a long context would else take a page of 2 MiB.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel that knows no large pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
