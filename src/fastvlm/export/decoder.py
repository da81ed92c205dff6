"""The decoder of a checkpoint in plain torch operations, which every exported format is made of.

B sequences, T tokens, P tokens before them in the cache, S = P + T, H query heads, K key/value heads of width E,
G = H / K, D wide, V tokens.

Keys and values of a layer are two tensors (B, K, P, E), of which each call returns longer ones, or two of fixed length
that it writes into. The arithmetic is that of the weights' dtype, but norms and rotary angles are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import DecoderConfig
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import DECODER, EMBEDDING, FINAL_NORM, HEAD

# Queries (B, H, T, E), keys and values (B, K, S, E), mask (B, 1, T, S) -> (B, H, T, E). The mask is bool, True where
# attention is allowed, or float and added to the scores.
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Keys or values of a layer so far (B, K, P, E), new ones (B, K, T, E) -> all that are attended to (B, K, S, E).
Update = Callable[[Tensor, Tensor], Tensor]
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def appended(past: Tensor, new: Tensor) -> Tensor:
    """The cache with `new` behind it, the :data:`Update` of graphs whose cache grows."""
    return torch.cat((past, new), dim=2)


def expanded_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """torch's fused attention over keys expanded to all heads, the form that OpenVINO recognizes."""
    keys, values = (_for_all_heads(x, queries.shape[1]) for x in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Two products and a softmax; keys and values are not repeated. Rows with nothing allowed give no NaN."""
    batch, heads, length, width = queries.shape
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    # Queries of heads that share keys are rows of one product, so that no exporter repeats the keys.
    groups = queries.reshape(keys.shape[0], -1, width) * width**-0.5
    scores = torch.bmm(groups, keys.transpose(1, 2)).reshape(batch, heads, length, -1)
    # Not -inf: a row of left padding, where nothing is allowed, would become NaN.
    lowest = torch.finfo(scores.dtype).min / 2
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).reshape(keys.shape[0], -1, keys.shape[1])
    return torch.bmm(weights, values).reshape(batch, heads, length, width)


class _Layer(nn.Module):
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, checkpoint: Checkpoint, prefix: str, attention: Attention) -> None:
        super().__init__()
        sizes = checkpoint.config.text_config
        self.head_dim, self.epsilon, self.attention = sizes.head_dim, sizes.rms_norm_eps, attention
        for name in _LINEARS:
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            self.add_module(name, _linear(checkpoint, f"{prefix}{part}.{name}"))
        self.attention_norm = _parameter(checkpoint, f"{prefix}input_layernorm.weight")
        self.mlp_norm = _parameter(checkpoint, f"{prefix}post_attention_layernorm.weight")

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor], update: Update
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (B, T, D), keys and values after the layer.

        Args:
            x: hidden states (B, T, D).
            rotary: their cosines and sines (B, 1, T, E).
            mask: (B, 1, T, S).
            past: keys and values (B, K, P, E).
            update: puts new keys and values to the past ones.
        """
        y = rms_norm(x, self.attention_norm, self.epsilon)
        batch, length = y.shape[0], y.shape[1]
        queries, keys, values = (
            linear(y).reshape(batch, length, -1, self.head_dim).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = update(past[0], _rotated(keys, *rotary)), update(past[1], values)
        mixed = self.attention(_rotated(queries, *rotary), keys, values, mask)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        y = rms_norm(x, self.mlp_norm, self.epsilon)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)), keys, values


class PlainDecoder(nn.Module):
    """Layers, last norm and head of a checkpoint's decoder, float32. Subclasses say what comes in.

    Args:
        checkpoint: the weights; those that are float32 already are shared.
        attention: how queries, keys and values are mixed.
    """

    frequencies: Tensor

    def __init__(self, checkpoint: Checkpoint, attention: Attention = expanded_attention) -> None:
        super().__init__()
        self.config: DecoderConfig = checkpoint.config.text_config
        self.layers = nn.ModuleList(
            _Layer(checkpoint, f"{DECODER}layers.{index}.", attention) for index in range(self.config.num_hidden_layers)
        )
        self.norm = _parameter(checkpoint, FINAL_NORM)
        self.head = _parameter(checkpoint, HEAD if HEAD in checkpoint.tensors else EMBEDDING)
        self.register_buffer("frequencies", checkpoint.rotary.frequencies, persistent=False)

    def empty_cache(self, batch: int, num_tokens: int = 0) -> list[Tensor]:
        """Keys and values of each layer in turn, zeros (B, K, P, E) for P = `num_tokens`."""
        shape = (batch, self.config.num_key_value_heads, num_tokens, self.config.head_dim)
        return [torch.zeros(shape, dtype=self.head.dtype) for _ in range(2 * self.config.num_hidden_layers)]

    def hidden(
        self,
        x: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        past: Sequence[Tensor],
        update: Update = appended,
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (B, T, D) after the layers, before the last norm, and the cache with the new tokens.

        Args:
            x: embeddings (B, T, D).
            position_ids: (B, T).
            mask: (B, 1, T, S): which tokens each one attends to; see :data:`Attention`.
            past: keys and values (B, K, P, E) of each layer in turn.
            update: puts new keys and values to the past ones.
        """
        angles = position_ids[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        rotary = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        cache: list[Tensor] = []
        for layer, keys, values in zip(self.layers, past[::2], past[1::2], strict=True):
            x, *new = layer(x, rotary, mask, (keys, values), update)
            cache += new
        return x, cache

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, T, V) of hidden states (B, T, D)."""
        return F.linear(self.normed(x), self.head)

    def normed(self, x: Tensor) -> Tensor:
        """Hidden states (..., D) after the last norm."""
        return rms_norm(x, self.norm, self.config.rms_norm_eps)


class TokenDecoder(PlainDecoder):
    """The decoder from token ids to the logits of the last position; sequences without padding."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.embedding = self.head if HEAD not in checkpoint.tensors else _parameter(checkpoint, EMBEDDING)

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, 1, V) of the last position, then the cache with the new tokens.

        Args:
            input_ids: (B, T).
            position_ids: (B, T), P and on.
            past: keys and values (B, K, P, E) of each layer in turn.
        """
        total = past[0].shape[2] + input_ids.shape[1]
        allowed = torch.arange(total)[None, None, None] <= position_ids[:, None, :, None]
        x, cache = self.hidden(F.embedding(input_ids, self.embedding), position_ids, allowed, past)
        return self.logits(x[:, -1:]), *cache


class EmbeddingsDecoder(PlainDecoder):
    """The decoder from embeddings to logits, with a padding mask: the third graph of an export.

    Embeddings and logits are float32, whatever the dtype of the weights and of the cache.
    """

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (B, T, V), then the cache with the new tokens.

        Args:
            inputs_embeds: (B, T, D) float32.
            attention_mask: int64 (B, S), 0 at padding.
            position_ids: (B, T), counted without the padding.
            past: keys and values (B, K, P, E) of each layer in turn.
        """
        before, length = past[0].shape[2], inputs_embeds.shape[1]
        rows = torch.arange(length)[:, None] + before
        allowed = (torch.arange(before + length)[None] <= rows) & (attention_mask[:, None, None] > 0)
        x, cache = self.hidden(inputs_embeds.to(self.head.dtype), position_ids, allowed, past)
        return self.logits(x).float(), *cache


@torch.inference_mode()
def greedy(decoder: TokenDecoder, prompt: Sequence[int], num_tokens: int) -> tuple[Tensor, list[int]]:
    """Logits (V,) behind `prompt`, and `num_tokens` token ids of the greedy reply."""
    logits, *cache = decoder(torch.tensor([prompt]), torch.arange(len(prompt))[None], *decoder.empty_cache(1))
    first, tokens = logits[0, 0], [int(logits[0, 0].argmax())]
    for position in range(len(prompt), len(prompt) + num_tokens - 1):
        logits, *cache = decoder(torch.tensor([tokens[-1:]]), torch.tensor([[position]]), *cache)
        tokens.append(int(logits[0, 0].argmax()))
    return first, tokens


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x` (..., D) over the root of its mean square, times `weight` (D,); the quotient is computed in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight


def _for_all_heads(x: Tensor, heads: int) -> Tensor:
    """(B, K, S, E) -> (B, H, S, E)."""
    batch, kv_heads, length, width = x.shape
    x = x[:, :, None].expand(batch, kv_heads, heads // kv_heads, length, width)
    return x.reshape(batch, heads, length, width)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def _parameter(checkpoint: Checkpoint, name: str) -> nn.Parameter:
    return nn.Parameter(checkpoint.tensors[name].float(), requires_grad=False)


def _linear(checkpoint: Checkpoint, name: str) -> nn.Linear:
    weight = _parameter(checkpoint, f"{name}.weight")
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{name}.bias" in checkpoint.tensors)
    linear.weight = weight
    if f"{name}.bias" in checkpoint.tensors:
        linear.bias = _parameter(checkpoint, f"{name}.bias")
    return linear
