"""The decoder of a checkpoint in plain torch operations: what OpenVINO converts, and whose logits peers must reproduce.

B sequences, T tokens, P tokens before them in the cache, H query heads, K key/value heads of width E, D wide, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.config import DecoderConfig
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import DECODER, EMBEDDING, FINAL_NORM, HEAD

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _Layer(nn.Module):
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        super().__init__()
        sizes = checkpoint.config.text_config
        self.num_kv_heads, self.head_dim, self.epsilon = sizes.num_key_value_heads, sizes.head_dim, sizes.rms_norm_eps
        self.queries_per_head = sizes.num_attention_heads // sizes.num_key_value_heads
        for name in _LINEARS:
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            self.add_module(name, _linear(checkpoint, f"{prefix}{part}.{name}"))
        self.attention_norm = _parameter(checkpoint, f"{prefix}input_layernorm.weight")
        self.mlp_norm = _parameter(checkpoint, f"{prefix}post_attention_layernorm.weight")

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], allowed: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (B, T, D), their cosines and sines (B, 1, T, E), the mask (B, 1, T, P + T) and the cache."""
        y = rms_norm(x, self.attention_norm, self.epsilon)
        batch, length = y.shape[0], y.shape[1]
        queries, keys, values = (
            linear(y).reshape(batch, length, -1, self.head_dim).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys = torch.cat((past[0], _rotated(keys, *rotary)), dim=2)
        values = torch.cat((past[1], values), dim=2)
        mixed = F.scaled_dot_product_attention(
            _rotated(queries, *rotary), self._for_all_heads(keys), self._for_all_heads(values), attn_mask=allowed
        )
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        y = rms_norm(x, self.mlp_norm, self.epsilon)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)), keys, values

    def _for_all_heads(self, x: Tensor) -> Tensor:
        """(B, K, S, E) -> (B, H, S, E)."""
        batch, _, length, _ = x.shape
        x = x[:, :, None].expand(batch, self.num_kv_heads, self.queries_per_head, length, self.head_dim)
        return x.reshape(batch, self.num_kv_heads * self.queries_per_head, length, self.head_dim)


class PlainDecoder(nn.Module):
    """The decoder with its head, float32.

    Args:
        checkpoint: the weights; those that are float32 already are shared.
    """

    frequencies: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.config: DecoderConfig = checkpoint.config.text_config
        self.embedding = _parameter(checkpoint, EMBEDDING)
        self.layers = nn.ModuleList(
            _Layer(checkpoint, f"{DECODER}layers.{index}.") for index in range(self.config.num_hidden_layers)
        )
        self.norm = _parameter(checkpoint, FINAL_NORM)
        self.head = _parameter(checkpoint, HEAD) if HEAD in checkpoint.tensors else None  # None: the embedding
        self.register_buffer("frequencies", checkpoint.rotary.frequencies, persistent=False)

    def empty_cache(self, batch: int) -> list[Tensor]:
        """Keys and values of each layer in turn, each (B, K, 0, E)."""
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_dim)
        return [torch.zeros(shape) for _ in range(2 * self.config.num_hidden_layers)]

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, 1, V) of the last position, then the cache with the new tokens.

        Args:
            input_ids: (B, T).
            position_ids: (B, T), P and on.
            past: keys and values (B, K, P, E) of each layer in turn.
        """
        angles = position_ids[:, None, :, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        rotary = (angles.cos(), angles.sin())
        total = past[0].shape[2] + input_ids.shape[1]
        allowed = torch.arange(total)[None, None, None] <= position_ids[:, None, :, None]
        x = F.embedding(input_ids, self.embedding)
        cache: list[Tensor] = []
        for layer, keys, values in zip(self.layers, past[::2], past[1::2], strict=True):
            x, *new = layer(x, rotary, allowed, (keys, values))
            cache += new
        head = self.embedding if self.head is None else self.head
        return F.linear(rms_norm(x[:, -1:], self.norm, self.config.rms_norm_eps), head), *cache


@torch.inference_mode()
def greedy(decoder: PlainDecoder, prompt: Sequence[int], num_tokens: int) -> tuple[Tensor, list[int]]:
    """Logits (V,) behind `prompt`, and `num_tokens` token ids of the greedy reply."""
    logits, *cache = decoder(torch.tensor([prompt]), torch.arange(len(prompt))[None], *decoder.empty_cache(1))
    first, tokens = logits[0, 0], [int(logits[0, 0].argmax())]
    for position in range(len(prompt), len(prompt) + num_tokens - 1):
        logits, *cache = decoder(torch.tensor([tokens[-1:]]), torch.tensor([[position]]), *cache)
        tokens.append(int(logits[0, 0].argmax()))
    return first, tokens


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x` (..., D) over the root of its mean square, times `weight` (D,)."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


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
