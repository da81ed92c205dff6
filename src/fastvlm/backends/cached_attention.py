"""Attention over the KV cache: for a prompt chunk, one token, a few tokens of one slot, and tokens of several slots.

Each function writes the new keys and values into the cache first. T new tokens, H heads, K key/value heads, G = H / K
heads per key/value head, E head width; q (T, H, E), kv (T, 2 K, E): keys, then values; result (T, H * E).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.kv_cache import KeyValueCache

ROW_TOKENS = 256  # cost of a row's own calls, in tokens of attention (docs/performance.md)
Attend = Callable[[int, Tensor, Tensor], Tensor]  # (layer, q, kv) -> mixed values


def attend_prompt(cache: KeyValueCache, slot: int, start: int, num_tokens: int) -> Attend:
    """Causal attention of `num_tokens` consecutive tokens from position `start` of one slot."""
    end = start + num_tokens
    mask = None
    if start:
        mask = torch.ones(num_tokens, end, dtype=torch.bool, device=cache.layers[0].device).tril(start)

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        held = cache.slots[slot][layer]
        held[:, start:end] = kv.transpose(0, 1)
        keys, values = held[None, :, :end].chunk(2, dim=1)
        mixed = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, mask, is_causal=mask is None, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).reshape(num_tokens, -1)

    return attend


def attend_token(cache: KeyValueCache, slot: int, position: int) -> Attend:
    """Attention of one token of one slot: views only, no mask, a group's heads as rows of one matrix product."""
    layers, end = cache.slots[slot], position + 1

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        held = layers[layer]
        held.select(1, position).copy_(kv[0])
        keys, values = held.narrow(1, 0, end).unsqueeze(0).chunk(2, 1)
        grouped = q.view(1, keys.shape[1], -1, q.shape[-1])  # (1, K, G, E)
        return F.scaled_dot_product_attention(grouped, keys, values).view(1, -1)

    return attend


def attend_run(cache: KeyValueCache, slot: int, start: int, num_tokens: int) -> Attend:
    """Causal attention of a few consecutive tokens from position `start` of one slot.

    A group's heads are rows of one matrix product, under an additive mask: for up to 16 tokens this takes less time
    than :func:`attend_prompt`.
    """
    layers, end = cache.slots[slot], start + num_tokens
    mask = torch.zeros(num_tokens, end, dtype=cache.layers[0].dtype)
    mask.masked_fill_(torch.ones(num_tokens, end, dtype=torch.bool).triu_(start + 1), -torch.inf)
    repeated: Tensor | None = None

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        nonlocal repeated
        held = layers[layer]
        held[:, start:end] = kv.transpose(0, 1)
        keys, values = held[None, :, :end].chunk(2, dim=1)
        grouped = q.view(num_tokens, keys.shape[1], -1, q.shape[-1])  # (T, K, G, E)
        repeated = mask.repeat(grouped.shape[2], 1) if repeated is None else repeated  # (G * T, end)
        rows = grouped.permute(1, 2, 0, 3).flatten(1, 2)[None]  # (1, K, G * T, E)
        mixed = F.scaled_dot_product_attention(rows, keys, values, repeated)[0]
        return mixed.view(len(mixed), -1, num_tokens, q.shape[-1]).permute(2, 0, 1, 3).reshape(num_tokens, -1)

    return attend


def attend_rows(cache: KeyValueCache, slots: Sequence[int], positions: Sequence[int]) -> Attend:
    """Attention of one token of each of several slots, or of consecutive tokens where a slot is repeated.

    On a CPU: one matrix product over all slots from the first to the last, if its unneeded tokens (idle or shorter
    slots) cost less than separate calls; else one slot after the other. On other devices: one masked product over
    copies.
    """
    device = cache.layers[0].device
    if device.type != "cpu":
        where, at = torch.tensor([list(slots), list(positions)], device=device)
        return attend_rows_together(cache, where, at, max(positions) + 1)
    if len(set(slots)) < len(slots):
        return _attend_runs(cache, slots, positions)
    span = max(slots) - min(slots) + 1
    if span * (max(positions) + 1) <= sum(positions) + (ROW_TOKENS + 1) * len(positions):
        return attend_neighbors(cache, slots, positions)
    rows = [attend_token(cache, slot, position) for slot, position in zip(slots, positions, strict=True)]

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return torch.cat([row(layer, q[i : i + 1], kv[i : i + 1]) for i, row in enumerate(rows)])

    return attend


def _attend_runs(cache: KeyValueCache, slots: Sequence[int], positions: Sequence[int]) -> Attend:
    """Attention of the rows of each slot, one slot after the other."""
    runs: list[tuple[slice, Attend]] = []
    for slot, run in groupby(range(len(slots)), key=slots.__getitem__):
        rows = list(run)
        start, num_tokens = positions[rows[0]], len(rows)
        one = attend_token(cache, slot, start) if num_tokens == 1 else attend_run(cache, slot, start, num_tokens)
        runs.append((slice(rows[0], rows[-1] + 1), one))

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return torch.cat([one(layer, q[rows], kv[rows]) for rows, one in runs])

    return attend


def attend_neighbors(cache: KeyValueCache, slots: Sequence[int], positions: Sequence[int]) -> Attend:
    """Attention of one token of each of several slots: one matrix product over a view of all slots between them.

    Nothing is copied. Idle slots between them get zero queries, which attend to the first token; their results are
    dropped.
    """
    first, end = min(slots), max(positions) + 1
    span = slice(first, max(slots) + 1)
    at, where = torch.tensor(positions), torch.tensor(slots)
    row_of = where - first
    seen = torch.zeros(span.stop - first, dtype=torch.int64).index_copy_(0, row_of, at)
    # An additive mask, because a bool mask would be converted in every layer.
    mask = torch.zeros(len(seen), 1, 1, end, dtype=cache.layers[0].dtype)
    mask.masked_fill_((torch.arange(end) > seen[:, None])[:, None, None], -torch.inf)
    is_whole = row_of.tolist() == list(range(len(seen)))

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        held = cache.layers[layer]
        held[where, :, at] = kv
        keys, values = held[span, :, :end].chunk(2, dim=1)
        rows = q if is_whole else q.new_zeros(len(seen), *q.shape[1:]).index_copy_(0, row_of, q)
        grouped = rows.view(len(seen), keys.shape[1], -1, q.shape[-1])  # (span, K, G, E)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, mask).reshape(len(seen), -1)
        return mixed if is_whole else mixed[row_of]

    return attend


def attend_rows_together(cache: KeyValueCache, where: Tensor, at: Tensor, end: int) -> Attend:
    """Attention of one token of each of the slots `where` (T,), at positions `at` (T,), over the first `end` tokens.

    Needs no value from the device: the same `end` gives the same work for all slots and positions.
    """
    mask = (torch.arange(end, device=at.device) <= at[:, None])[:, None, None]  # (T, 1, 1, end)

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        held = cache.layers[layer]
        held[where, :, at] = kv
        keys, values = held[:, :, :end][where].chunk(2, dim=1)
        grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])  # (T, K, G, E)
        return F.scaled_dot_product_attention(grouped, keys, values, mask).reshape(len(q), -1)

    return attend
