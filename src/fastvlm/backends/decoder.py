"""Qwen2 decoder with a KV cache of several slots: prefill in one pass or in chunks, then decoding steps.

Operations follow the order of transformers' Qwen2. T tokens, B rows, D width, H heads, K key/value heads, E head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.cached_attention import (
    Attend,
    attend_prompt,
    attend_rows,
    attend_rows_together,
    attend_token,
)
from fastvlm.backends.cuda_graphs import GraphedDecode
from fastvlm.backends.decoder_weights import DecoderLayer, DecoderWeights
from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.backends.native.decoder import NativeDecoder

_FIRST_TABLE_TOKENS = 1024


class Decoder:
    """Decoder and head with their own KV cache.

    Args:
        weights: may be shared with other decoders.
        num_slots: sequences at the same time.
        context: maximum tokens of a slot, prompt and reply.
        has_fixed_shapes: decode on buffers of fixed shape, with CUDA graphs on a GPU. Logits are then valid until the
            next step only.
    """

    def __init__(
        self, weights: DecoderWeights, num_slots: int, context: int, *, has_fixed_shapes: bool = False
    ) -> None:
        config = weights.config
        self.weights, self._embedding, self._dtype = weights, weights.embedding, weights.dtype
        self._layers, self._norm, self._head = weights.layers, weights.norm, weights.head
        self._epsilon = config.rms_norm_eps
        self._is_exact = self.device.type != "cpu" or self.dtype == torch.float32
        self._num_heads, self._num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.cache = KeyValueCache(config, num_slots, context, self.dtype, self.device)
        self._native = NativeDecoder.over(weights, self.cache)
        self._cos = self._sin = torch.empty(0)
        self._grow_tables(context if has_fixed_shapes else min(_FIRST_TABLE_TOKENS, context))
        self.fixed = GraphedDecode(self._fixed_step, context, self.device) if has_fixed_shapes else None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation."""
        return self._dtype

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return F.embedding(torch.tensor(token_ids, device=self.device), self._embedding).to(self._dtype)

    @torch.inference_mode()
    def prefill_chunk(self, embeds: Tensor, slot: int, start: int = 0) -> Tensor:
        """Prefill `embeds` (T, D) into `slot` at position `start`; return the last token's hidden state (1, D)."""
        num_tokens = len(embeds)
        self._grow_tables(start + num_tokens)
        if self._native is not None:
            return self._native.prefill_chunk(embeds.to(self.dtype), slot, start, (self._cos, self._sin))
        rows = slice(start, start + num_tokens)
        if num_tokens == 1:
            attend = attend_token(self.cache, slot, start)
        else:
            attend = attend_prompt(self.cache, slot, start, num_tokens)
        return self._run(embeds, self._cos[rows], self._sin[rows], attend, is_last_only=True)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, V) of rows (T, D) that :meth:`prefill_chunk` returned."""
        return self._head(self._normed(hidden, self._norm))

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token in each of `slots`, at `positions` (tokens that the slot holds).

        Rows of the same slot follow one another and have consecutive positions.
        """
        if self.fixed is not None:
            return self.fixed(token_ids, slots, positions)
        self._grow_tables(max(positions) + 1)
        if self._native is not None:
            return self._native.decode(self.embed(token_ids), slots, positions, (self._cos, self._sin))
        if len(slots) == 1:
            position = positions[0]
            cos, sin = self._cos[position : position + 1], self._sin[position : position + 1]
            attend = attend_token(self.cache, slots[0], position)
        else:
            at = torch.tensor(positions, device=self.device)
            cos, sin = self._cos[at], self._sin[at]
            attend = attend_rows(self.cache, slots, positions)
        return self.logits(self._run(self.embed(token_ids), cos, sin, attend))

    def _fixed_step(self, rows: Tensor, end: int) -> Tensor:
        """Logits (B, V) of `rows` (3, B): token ids, slots, positions; attention covers `end` tokens."""
        token_ids, where, at = rows
        attend = attend_rows_together(self.cache, where, at, end)
        embeds = F.embedding(token_ids, self._embedding).to(self._dtype)
        return self.logits(self._run(embeds, self._cos[at], self._sin[at], attend))

    def _run(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend, *, is_last_only: bool = False) -> Tensor:
        """Run the layers on all rows of `hidden` (T, D), or return the last row only; cos, sin (T, 1, E)."""
        for index, layer in enumerate(self._layers):
            mixed = attend(index, *self._q_and_kv(layer, hidden, cos, sin))
            if is_last_only and index == len(self._layers) - 1:  # nothing reads the other rows of the last layer
                hidden, mixed = hidden[-1:], mixed[-1:]
            hidden = hidden + layer.output(mixed)
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate).mul_(up))
        return hidden

    def _q_and_kv(self, layer: DecoderLayer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (T, H, E) and keys followed by values (T, 2 K, E); queries and keys with rotary positions applied."""
        heads = self._num_heads
        qkv = layer.qkv(self._normed(hidden, layer.attention_norm)).view(
            len(hidden), heads + 2 * self._num_kv_heads, -1
        )
        turned = qkv[:, : heads + self._num_kv_heads]
        torch.addcmul(turned * cos, turned.roll(turned.shape[-1] // 2, -1), sin, out=turned)
        return qkv[:, :heads], qkv[:, heads:]

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of `hidden` (T, D).

        On a CPU in half precision it is computed as the layer norm of (x, -x), whose mean is 0 and whose variance is
        the mean square: one kernel instead of seven.
        """
        if self._is_exact:
            return F.rms_norm(hidden, weight.shape, weight, self._epsilon)
        width = len(weight)
        mirrored = torch.cat([hidden, -hidden], dim=-1)
        return F.layer_norm(mirrored, (2 * width,), None, None, self._epsilon)[:, :width] * weight

    def _grow_tables(self, num_tokens: int) -> None:
        """Extend the cosine and sine tables (C, 1, E) to `num_tokens`, at least doubling them."""
        known = len(self._cos)
        if num_tokens <= known:
            return
        cos, sin = self.weights.rotary.tables(min(max(num_tokens, 2 * known), self.cache.context), self._dtype)
        first, second = sin.chunk(2, dim=-1)
        self._cos, self._sin = cos[:, None], torch.cat([-first, second], dim=-1)[:, None]  # for `roll`, no negation
