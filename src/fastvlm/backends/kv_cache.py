"""KV cache: keys and values of all layers in a fixed number of slots.

On a CPU the memory is reserved at once but used only as it is written, so a slot for the whole context costs what its
longest request needs. S slots, K key/value heads, C context in tokens, E head width.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

from fastvlm.config import DecoderConfig

# Memory of this process alone; Windows' anonymous maps are that without flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class KeyValueCache:
    """KV cache. `layers`: a tensor (S, 2 K, C, E) per layer, the keys of all heads, then their values; zeros at first.

    Keys and values share one tensor so that a new token's are written at once.

    Args:
        config: the decoder's layers, key/value heads and head width.
        num_slots: sequences at the same time.
        context: maximum tokens of a slot.
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
        """Reserved bytes."""
        return self.bytes_per_token * self.num_slots * self.context

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` of slot `source` to slot `target`."""
        if source == target:
            return
        for tensor in self.layers:
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros; on a CPU untouched anonymous pages, which take memory only when they are written.

    They must be zeros, because masked attention multiplies them by 0, which must not give NaN. They must be small
    pages, because each head's few hundred tokens of a long context would otherwise take a page of 2 MiB.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
