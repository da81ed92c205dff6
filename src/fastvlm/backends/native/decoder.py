"""All layers of a decoder in one call of the compiled kernels (``cpp/decoder_pass.hpp``): decoding steps and prefill.

For a decoder in float32 or bfloat16 on a CPU whose linear layers are all :class:`NativeLinear`. Sums between the linear
layers and the residual stream are float32, where PyTorch rounds to bfloat16.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.decoder_weights import DecoderLayer, DecoderWeights
from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.backends.native.address import address
from fastvlm.backends.native.kernels import MOST_ROWS, NativeKernels
from fastvlm.backends.native.linear import NativeLinear, NativeLinearWeights, linear_kernels
from fastvlm.config import DecoderConfig
from fastvlm.formats.checkpoint import RotaryPositions
from fastvlm.formats.names import HEAD

_HEAD_WIDTHS, _MOST_SHARING = range(32, 257, 32), 16  # cpp/decoder_attention.hpp
_TILE_ROWS = 16  # keys that are read at a time, perhaps beyond a slot's last one


class NativeLayer(ctypes.Structure):
    """`Layer` in cpp/decoder_pass.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm")),
        *((name, ctypes.POINTER(NativeLinearWeights)) for name in ("qkv", "output", "gate_up", "down")),
        ("cache", ctypes.c_void_p),
    )


class NativeModel(ctypes.Structure):
    """`Model` in cpp/decoder_pass.hpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(NativeLayer)),
        ("norm", ctypes.c_void_p),
        ("head", ctypes.POINTER(NativeLinearWeights)),
        *((name, ctypes.c_ssize_t) for name in ("num_layers", "width")),
        *((name, ctypes.c_ssize_t) for name in ("heads", "kv_heads", "head_width", "context")),
        ("epsilon", ctypes.c_double),
    )


# Cosines and sines (C, 1, E) by which heads are turned, in the decoder's dtype; the first half of the sines is negated.
Tables = tuple[Tensor, Tensor]


class _NativeLayer(NamedTuple):
    """A decoder layer whose linear layers are all native."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: NativeLinear
    output: NativeLinear
    gate_up: NativeLinear
    down: NativeLinear

    @classmethod
    def of(cls, layer: DecoderLayer, dtype: torch.dtype) -> _NativeLayer | None:
        """`layer` as a native layer of `dtype`, or None if the kernels do not support it."""
        qkv, output, gate_up, down = layer.qkv, layer.output, layer.gate_up, layer.down
        norms = (layer.attention_norm, layer.mlp_norm)
        if not (isinstance(qkv, NativeLinear) and isinstance(output, NativeLinear)):
            return None
        if not (isinstance(gate_up, NativeLinear) and isinstance(down, NativeLinear)):
            return None
        if not all(norm.dtype == dtype and norm.is_contiguous() for norm in norms):
            return None
        return cls(*norms, qkv, output, gate_up, down)


class NativeDecoder:
    """Decoding steps and prefill of one decoder on its cache; made by :meth:`over`."""

    def __init__(
        self,
        kernels: NativeKernels,
        weights: DecoderWeights,
        layers: Sequence[_NativeLayer],
        head: NativeLinear,
        cache: KeyValueCache,
    ) -> None:
        self._kernels, self._vocab_size = kernels, head.out_features
        num_slots, planes, context, head_width = shape = cache.layers[0].shape
        self._num_slots, self._context = num_slots, context
        heads, epsilon = weights.config.num_attention_heads, weights.config.rms_norm_eps
        sizes = _Sizes(len(weights.norm), heads, planes // 2, head_width, layers[0].down.in_features)
        sizes.check_head(head)
        structures = [_structure(layer, sizes, held, shape) for layer, held in zip(layers, cache.layers, strict=True)]
        self._held = weights, layers, head, cache  # what the pointers point to
        self._model = NativeModel(
            (NativeLayer * len(layers))(*structures),
            address("norm", weights.norm, weights.dtype, sizes.width),
            ctypes.pointer(head.native_weights),
            len(layers),
            sizes.width,
            sizes.heads,
            sizes.kv_heads,
            head_width,
            context,
            epsilon,
        )

    @classmethod
    def over(cls, weights: DecoderWeights, cache: KeyValueCache) -> NativeDecoder | None:
        """A native decoder for these weights and this cache, or None if the kernels do not support them."""
        kernels = linear_kernels(weights.dtype)
        if kernels is None or not weights.layers or not passes_are_right(kernels, weights.dtype):
            return None
        return cls._over(kernels, weights, cache)

    @classmethod
    def _over(cls, kernels: NativeKernels, weights: DecoderWeights, cache: KeyValueCache) -> NativeDecoder | None:
        _, planes, context, head_width = cache.layers[0].shape
        layers, head = [_NativeLayer.of(layer, weights.dtype) for layer in weights.layers], weights.head
        taken = [layer for layer in layers if layer is not None]
        is_taken = (
            len(taken) == len(layers)
            and all(held.dtype == weights.dtype and held.is_contiguous() for held in (weights.norm, *cache.layers))
            and head_width in _HEAD_WIDTHS
            and 2 * weights.config.num_attention_heads <= planes * _MOST_SHARING
            and context >= _TILE_ROWS
        )
        return cls(kernels, weights, taken, head, cache) if is_taken and isinstance(head, NativeLinear) else None

    def decode(self, embeds: Tensor, slots: Sequence[int], positions: Sequence[int], tables: Tables) -> Tensor:
        """Logits (B, V) after `embeds` (B, D), tokens of `slots` at `positions`, in the decoder's dtype.

        Raises:
            ValueError: a slot or position that the cache or `tables` do not have.
        """
        self._check_places(slots, positions, tables)
        embeds, places = embeds.contiguous(), torch.tensor([list(slots), list(positions)])
        logits = embeds.new_empty(len(embeds), self._vocab_size)
        for first in range(0, len(embeds), MOST_ROWS):
            some = slice(first, first + MOST_ROWS)
            self._call(embeds[some], places[:, some], tables, logits[some], are_consecutive=False, has_logits=True)
        return logits

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int, tables: Tables) -> Tensor:
        """Prefill `embeds` (T, D) into `slot` at position `start`; return the last token's hidden state (1, D).

        Raises:
            ValueError: a slot or position that the cache or `tables` do not have.
        """
        self._check_places([slot], [start, start + len(embeds) - 1], tables)
        embeds, positions = embeds.contiguous(), torch.arange(start, start + len(embeds))
        places = torch.stack([torch.full_like(positions, slot), positions])
        hidden = embeds.new_empty(1, embeds.shape[1])
        for first in range(0, len(embeds), MOST_ROWS):
            some = slice(first, first + MOST_ROWS)
            self._call(embeds[some], places[:, some], tables, hidden, are_consecutive=True, has_logits=False)
        return hidden

    def _check_places(self, slots: Sequence[int], positions: Sequence[int], tables: Tables) -> None:
        end = min(self._context, len(tables[0]))
        if min(slots) < 0 or max(slots) >= self._num_slots:
            raise ValueError(f"slots are {list(slots)}; expected 0 to {self._num_slots - 1}.")
        if min(positions) < 0 or max(positions) >= end:
            raise ValueError(f"positions are {min(positions)} to {max(positions)}; expected 0 to {end - 1}.")

    def _call(
        self,
        embeds: Tensor,
        places: Tensor,
        tables: Tables,
        results: Tensor,
        *,
        are_consecutive: bool,
        has_logits: bool,
    ) -> None:
        self._kernels.decode(
            self._model, embeds, places, tables, results, are_consecutive=are_consecutive, has_logits=has_logits
        )


class _Sizes(NamedTuple):
    """The sizes that a decoder's linear layers must have."""

    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int  # between gate and down

    def check_head(self, head: NativeLinear) -> None:
        """Raise ValueError for a head of another width, or heads that are not a multiple of the key/value heads."""
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads share {self.kv_heads} of keys and values; expected a divisor.")
        self._check("head", head, self.width, head.out_features)

    def check_layer(self, layer: _NativeLayer) -> None:
        """Raise ValueError if a linear layer of `layer` has another shape."""
        mixed = self.heads * self.head_width
        self._check("qkv", layer.qkv, self.width, mixed + 2 * self.kv_heads * self.head_width)
        self._check("output", layer.output, mixed, self.width)
        self._check("gate_up", layer.gate_up, self.width, 2 * self.inner)
        self._check("down", layer.down, self.inner, self.width)

    @staticmethod
    def _check(name: str, linear: NativeLinear, inputs: int, outputs: int) -> None:
        found = linear.out_features, linear.in_features
        if found != (outputs, inputs):
            raise ValueError(f"{name} has the shape {found}; expected {(outputs, inputs)}.")


@functools.cache
def passes_are_right(kernels: NativeKernels, dtype: torch.dtype) -> bool:
    """True if one layer gives torch's results for a decoding step and for a prompt of equal tokens."""
    width, tokens = 64, 40
    rows = {"qkv": 128, "output": width, "gate_up": 2 * width, "down": width, "head": 48}
    dense = {
        name: ((torch.arange(out * width) * (7 + 2 * i) % 16 - 7.5) / 64).reshape(out, width).bfloat16()
        for i, (name, out) in enumerate(rows.items())
    }
    linears = {name: NativeLinear(kernels, [weight], [None]) for name, weight in dense.items()}
    norm, table = torch.ones(width, dtype=dtype), torch.full((tokens, 1, 32), 0.5, dtype=dtype)
    config = DecoderConfig(
        vocab_size=rows["head"],
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        head_dim=32,
        rms_norm_eps=0.0,
        rope_theta=1e4,
        eos_token_id=None,
        pad_token_id=None,
    )
    head = linears.pop("head")
    weights = DecoderWeights(
        config=config,
        dtype=dtype,
        embedding=dense["head"],
        linears={(HEAD,): head},
        layers=(DecoderLayer(attention_norm=norm, mlp_norm=norm, **linears),),
        norm=norm,
        rotary=RotaryPositions.default(config.rope_theta, config.head_dim),
        own_bytes=0,
    )
    decoder = NativeDecoder._over(kernels, weights, KeyValueCache(config, 2, 48, dtype))
    if decoder is None:
        return False
    embeds = (torch.arange(width) * 5 % 16 - 7.5).to(dtype).expand(tokens, width)
    normed, (qkv, output, gate_up, down, head_weight) = (
        partial(F.rms_norm, normalized_shape=(width,)),
        map(Tensor.float, dense.values()),
    )
    hidden = embeds[:1].float()
    hidden = hidden + (normed(hidden) @ qkv[96:].T).repeat(1, 2) @ output.T
    gate, up = (normed(hidden) @ gate_up.T).chunk(2, -1)
    hidden = hidden + (F.silu(gate) * up) @ down.T
    near = partial(torch.allclose, rtol=2e-2, atol=2e-2)
    logits = decoder.decode(embeds[:2], [1, 0], [0, 0], (table, table))
    filled = decoder.prefill_chunk(embeds, 1, 0, (table, table))
    return near(logits.float(), (normed(hidden) @ head_weight.T).expand(2, -1)) and near(filled.float(), hidden)


def _structure(layer: _NativeLayer, sizes: _Sizes, cache: Tensor, shape: Sequence[int]) -> NativeLayer:
    sizes.check_layer(layer)
    return NativeLayer(
        address("attention_norm", layer.attention_norm, cache.dtype, sizes.width),
        address("mlp_norm", layer.mlp_norm, cache.dtype, sizes.width),
        *(ctypes.pointer(linear.native_weights) for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)),
        address("cache", cache, cache.dtype, *shape),
    )
