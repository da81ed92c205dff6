"""The attention block of FastViTHD's last two stages. Attribute names are those of the checkpoints' keys.

Maps are (B, C, h, w) in the model's floating dtype; attention sees them as N = h * w tokens, row-major.

Source: apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/mci.py``; key names as in timm 1.0.31
``fastvit.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.encoder_config import ATTENTION_HEAD_DIM
from fastvlm.model import reparam
from fastvlm.model.blocks import ConvFFN, LayerScale


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each position of a (B, C, h, w) map; eps 1e-5, biased variance."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class MultiHeadSelfAttention(nn.Module):
    """Global attention over all h * w positions: heads of 32, no mask, no positions, qkv without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = channels // ATTENTION_HEAD_DIM
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C), row-major
        qkv = self.qkv(tokens).reshape(batch, -1, 3, self.num_heads, ATTENTION_HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, 32)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scales by 32 ** -0.5
        tokens = self.proj(mixed.transpose(1, 2).reshape(batch, -1, channels))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Residual attention after a LayerNorm, then a residual ConvFFN (its BatchNorm is its norm), both layer-scaled."""

    def __init__(self, channels: int, *, ratio: float, layer_scale_init: float) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(channels)
        self.token_mixer = MultiHeadSelfAttention(channels)
        self.layer_scale_1: nn.Module = LayerScale(channels, layer_scale_init)
        self.mlp = ConvFFN(channels, ratio)
        self.layer_scale_2: nn.Module = LayerScale(channels, layer_scale_init)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        return x + self.layer_scale_2(self.mlp(x))  # type: ignore[no-any-return]

    def fold(self) -> None:
        """Deploy time only: what can be multiplied into a neighbor is."""
        assert isinstance(self.layer_scale_1, LayerScale) and isinstance(self.layer_scale_2, LayerScale)
        reparam.scale_layer(self.token_mixer.proj, self.layer_scale_1.gamma)
        self.mlp.fold(self.layer_scale_2.gamma)
        self.layer_scale_1 = self.layer_scale_2 = nn.Identity()
