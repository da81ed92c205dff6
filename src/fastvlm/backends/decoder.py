"""The Qwen2 decoder over slots: the prompt in one pass or in chunks, then a token a step for one slot or several.

The weights are the loaded model's own, held once; what they are multiplied by is exchangeable (`make_linear`), so that
packed or quantized products take part. Additions come in the order of transformers' Qwen2. T tokens, B rows, D width,
H heads, K key/value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.backends.cached_attention import Attend, attend_prompt, attend_rows, attend_rows_together, attend_token
from fastvlm.backends.cpu.linear import Linear, LinearFactory, plain_linear
from fastvlm.backends.cuda_graphs import GraphedDecode
from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.backends.mapped_memory import give_back
from fastvlm.backends.native.decoder import NativeDecoder, Weights
from fastvlm.errors import ConfigError

__all__ = ["Decoder", "side_by_side"]

_FIRST_TABLE_TOKENS = 1024
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class _Layer:
    """One layer's weights: two norms (D,) and four products; `gate_up` gives the gate and then what it lets through."""

    attention_norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """Decoder and head of a loaded model, over a cache of its own.

    Weights over the same input (query, key and value; gate and up) are laid one after the other, and the model's
    parameters become views of that: nothing is held twice, and `generate` works as before.

    Args:
        model: a :class:`fastvlm.FastVlmForConditionalGeneration`.
        num_slots: requests at the same time.
        context: tokens a slot can hold, prompt and reply.
        make_linear: turns a weight and its bias into a product. Layers that are no plain ``nn.Linear`` (LoRA,
            quantized by transformers) are called as they are. It may have a `side_by_side` of its own.
        takes_weights: take the weights of these products out of the model, so that packed ones are not held beside
            them; the model cannot compute anything afterwards but the images' features.
        has_fixed_shapes: decode on buffers of fixed shape, on a GPU as CUDA graphs. Logits of a step then last until
            the next one.
        dtype: what to compute in, if not in the model's own; `make_linear` has to see to the products.

    Raises:
        ConfigError: a decoder that is no plain Qwen2.
    """

    def __init__(
        self,
        model: Any,
        num_slots: int,
        context: int,
        make_linear: LinearFactory = plain_linear,
        *,
        takes_weights: bool = False,
        has_fixed_shapes: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        config, decoder = model.config.text_config, model.model.language_model
        _refuse_other_decoders(config)
        self._embedding: Tensor = model.get_input_embeddings().weight.detach()
        self._dtype = dtype or self._embedding.dtype
        self._rotary: nn.Module = decoder.rotary_emb
        make = partial(_linear, make_linear=make_linear, takes_weights=takes_weights, dtype=self._dtype)
        is_head_shared = model.lm_head.weight is model.get_input_embeddings().weight
        # The head first: what its packing needs for a moment, as much again, is gone when the layers come.
        self._head = make([model.lm_head], takes_weights=takes_weights and not is_head_shared)
        self._layers = [_layer(layer, make, self._dtype) for layer in decoder.layers]
        self._norm: Tensor = decoder.norm.weight.detach().to(self._dtype)
        self._epsilon: float = config.rms_norm_eps
        self._is_exact = self.device.type != "cpu" or self.dtype == torch.float32
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self.cache = KeyValueCache(config, num_slots, context, self.dtype, self.device)
        weights = Weights(self._layers, self._norm, self._head, self._num_heads, self._epsilon)
        self._native = NativeDecoder.over(weights, self.cache)
        self._grow_tables(context if has_fixed_shapes else min(_FIRST_TABLE_TOKENS, context))
        self.fixed = GraphedDecode(self._fixed_step, context, self.device) if has_fixed_shapes else None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._dtype

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return F.embedding(torch.tensor(token_ids, device=self.device), self._embedding).to(self._dtype)

    @torch.inference_mode()
    def prefill(self, embeds: Tensor, slot: int, start: int = 0) -> Tensor:
        """Logits (V,) after `embeds` (T, D), which continue the first `start` tokens that `slot` holds."""
        return self.logits(self.fill(embeds, slot, start))[0]

    @torch.inference_mode()
    def fill(self, embeds: Tensor, slot: int, start: int = 0) -> Tensor:
        """Let `slot` hold the tokens of `embeds` (T, D) after its first `start`; the last one (1, D) after all layers.

        For a prompt in chunks: the head is needed at the end of it alone.
        """
        num_tokens = len(embeds)
        self._grow_tables(start + num_tokens)
        if self._native is not None:
            return self._native.fill(embeds.to(self.dtype), slot, start, (self._cos, self._sin))
        rows = slice(start, start + num_tokens)
        if num_tokens == 1:
            attend = attend_token(self.cache, slot, start)
        else:
            attend = attend_prompt(self.cache, slot, start, num_tokens)
        return self._run(embeds, self._cos[rows], self._sin[rows], attend, is_last_only=True)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, V) of rows (T, D) that :meth:`fill` gave."""
        return self._head(self._normed(hidden, self._norm))

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token in each of `slots`, at `positions` (tokens that the slot holds)."""
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
        """Logits (B, V) of `rows` (3, B): token ids, slots, positions; attention goes over `end` tokens."""
        token_ids, where, at = rows
        attend = attend_rows_together(self.cache, where, at, end)
        embeds = F.embedding(token_ids, self._embedding).to(self._dtype)
        return self.logits(self._run(embeds, self._cos[at], self._sin[at], attend))

    def _run(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend, *, is_last_only: bool = False) -> Tensor:
        """What the layers make of all rows of `hidden` (T, D), or of the last one; cos, sin (T, 1, E)."""
        for index, layer in enumerate(self._layers):
            mixed = attend(index, *self._q_and_kv(layer, hidden, cos, sin))
            if is_last_only and index == len(self._layers) - 1:  # the last layer's other rows go nowhere
                hidden, mixed = hidden[-1:], mixed[-1:]
            hidden = hidden + layer.output(mixed)
            gate, up = layer.gate_up(self._normed(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate).mul_(up))
        return hidden

    def _q_and_kv(self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (T, H, E); keys and then values (T, 2 K, E); queries and keys turned to their positions."""
        heads = self._num_heads
        qkv = layer.qkv(self._normed(hidden, layer.attention_norm)).view(
            len(hidden), heads + 2 * self._num_kv_heads, -1
        )
        turned = qkv[:, : heads + self._num_kv_heads]
        torch.addcmul(turned * cos, turned.roll(turned.shape[-1] // 2, -1), sin, out=turned)
        return qkv[:, :heads], qkv[:, heads:]

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of `hidden` (T, D).

        On a CPU in half precision as the layer norm of (x, -x), whose mean is 0 and whose variance is the mean square:
        one kernel in place of seven.
        """
        if self._is_exact:
            return F.rms_norm(hidden, weight.shape, weight, self._epsilon)
        width = len(weight)
        mirrored = torch.cat([hidden, -hidden], dim=-1)
        return F.layer_norm(mirrored, (2 * width,), None, None, self._epsilon)[:, :width] * weight

    def _grow_tables(self, num_tokens: int) -> None:
        """Make the tables of cosines and sines (C, 1, E) reach `num_tokens`; each time at least twice as far."""
        known = len(getattr(self, "_cos", ()))
        if num_tokens <= known:
            return
        length = min(max(num_tokens, 2 * known), self.cache.context)
        positions = torch.arange(length, device=self.device)[None]
        cos, sin = self._rotary(self._embedding[:1].to(self._dtype), positions)
        first, second = sin[0].chunk(2, dim=-1)
        self._cos, self._sin = cos[0][:, None], torch.cat([-first, second], dim=-1)[:, None]  # for `roll`, no negation


def _refuse_other_decoders(config: Any) -> None:
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if config.model_type != "qwen2" or config.hidden_act != "silu":
        found = f"is {config.model_type!r} with {getattr(config, 'hidden_act', None)!r}"
    elif "sliding_attention" in config.layer_types:
        found = "has sliding windows"
    elif rope_type in _LENGTH_DEPENDENT_ROPE:
        found = f"has {rope_type!r} positions"
    else:
        return
    raise ConfigError(f"The decoder {found}; the engine runs plain Qwen2. Use model.generate for this model.")


def _layer(layer: Any, make: Callable[[Sequence[nn.Module]], Linear], dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=layer.input_layernorm.weight.detach().to(dtype),
        qkv=make([attention.q_proj, attention.k_proj, attention.v_proj]),
        output=make([attention.o_proj]),
        mlp_norm=layer.post_attention_layernorm.weight.detach().to(dtype),
        gate_up=make([mlp.gate_proj, mlp.up_proj]),
        down=make([mlp.down_proj]),
    )


def _linear(
    modules: Sequence[nn.Module], make_linear: LinearFactory, *, takes_weights: bool, dtype: torch.dtype
) -> Linear:
    """One product for `modules` over the same input, their outputs side by side."""
    # `_hf_hook`: accelerate moves this layer's weights about.
    if not all(type(module) is nn.Linear and not hasattr(module, "_hf_hook") for module in modules):
        modules = [_computing_in(module, dtype) for module in modules]
        return modules[0] if len(modules) == 1 else lambda x: torch.cat([module(x) for module in modules], dim=-1)
    weights = [module.weight for module in modules if isinstance(module.weight, nn.Parameter)]
    of_parts = getattr(make_linear, "of_parts", None)  # of a factory that wants nothing laid side by side
    if of_parts is None:
        biases = [module.bias for module in modules if isinstance(module.bias, nn.Parameter)]
        join = getattr(make_linear, "side_by_side", side_by_side)  # of a factory that knows what it joined before
        bias = join(biases) if len(biases) == len(modules) else None
        product = make_linear(join(weights), bias)
    else:
        product = of_parts(weights, [module.bias for module in modules])
    if takes_weights:
        for weight in weights:
            weight.data = weight.data.new_empty(0)
    return product


def _computing_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A layer of another kind, whose plain weights are turned into `dtype` if they are in another."""
    return module if all(p.dtype == dtype for p in module.parameters() if p.is_floating_point()) else module.to(dtype)


def side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All rows of `parameters` in one tensor, of which they become views."""
    first = parameters[0].detach()
    if len(parameters) == 1:
        return first
    rows = [len(parameter) for parameter in parameters]
    ends = [parameter.data_ptr() + parameter.nbytes for parameter in parameters]
    storage = first.untyped_storage().data_ptr()
    if all(p.untyped_storage().data_ptr() == storage for p in parameters) and ends[:-1] == [
        p.data_ptr() for p in parameters[1:]
    ]:  # by an engine before this one
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride())
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(joined, rows), strict=True):
        give_back(parameter.detach())
        parameter.data = part
    return joined
