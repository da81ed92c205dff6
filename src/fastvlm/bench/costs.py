"""Costs computed from a configuration: multiply-adds of the encoder, FLOPs of a prompt, bytes per decoded token.

A FLOP is a multiplication or an addition, so a multiply-add (MAC) counts two. Only convolutions, linears and attention
products count, as in the literature; normalizations and activations are left out.
"""

from __future__ import annotations

import math

from fastvlm.encoder_config import StageConfig, num_visual_tokens
from fastvlm.hf.config import FastViTHDConfig, FastVlmConfig

_FFN_KERNEL = 7


def encoder_macs(config: FastViTHDConfig, height_px: int, width_px: int) -> int:
    """Multiply-adds of the fused encoder for one image."""
    height, width = _halved(height_px, width_px)
    stem = config.stages[0].in_channels
    total = height * width * 9 * 3 * stem
    height, width = _halved(height, width)
    total += height * width * (9 * stem + stem**2)
    for stage in config.stages:
        if stage.has_downsample:
            height, width = _halved(height, width)
        total += _stage_macs(stage, config, height * width)
    hidden = config.hidden_size
    gate = 2 * hidden * max(1, int(hidden / 16 + 0.5))
    return total + height * width * 9 * hidden + gate


def _halved(height: int, width: int) -> tuple[int, int]:
    return math.ceil(height / 2), math.ceil(width / 2)


def _stage_macs(stage: StageConfig, config: FastViTHDConfig, positions: int) -> int:
    channels = stage.channels
    total = 0
    if stage.has_downsample:
        total += positions * channels * (config.downsample_kernel**2 + channels)
        total += 2 * channels * max(8, int(channels * 0.25 + 4) // 8 * 8) if stage.has_se else 0
    if stage.position_kernel is not None:
        total += positions * channels * math.prod(stage.position_kernel)
    return total + stage.depth * _block_macs(stage, config, positions)


def _block_macs(stage: StageConfig, config: FastViTHDConfig, positions: int) -> int:
    channels = stage.channels
    ffn = positions * channels * (_FFN_KERNEL**2 + 2 * int(channels * stage.mlp_ratio))
    if stage.token_mixer == "attention":
        return ffn + positions * channels * (4 * channels + 2 * positions)
    return ffn + positions * channels * config.repmixer_kernel**2


def projector_macs(config: FastVlmConfig, height_px: int, width_px: int) -> int:
    """Multiply-adds of the projector for one image."""
    tokens = num_visual_tokens(height_px, width_px, config.vision_config.stride_px)
    width = config.text_config.hidden_size
    return int(tokens * width * (config.vision_config.hidden_size + width))


def encoder_flops(config: FastVlmConfig, height_px: int, width_px: int) -> int:
    """FLOPs of encoder and projector for one image: 2 a multiply-add."""
    return 2 * (encoder_macs(config.vision_config, height_px, width_px) + projector_macs(config, height_px, width_px))


def decoder_weights(config: FastVlmConfig) -> int:
    """Weights of the decoder's linears and of its head: all that one decoded token is multiplied by."""
    text = config.text_config
    return int(_layer_weights(config) * text.num_hidden_layers + text.hidden_size * text.vocab_size)


def _layer_weights(config: FastVlmConfig) -> int:
    text = config.text_config
    width, head_dim = text.hidden_size, text.hidden_size // text.num_attention_heads
    attention = 2 * width * head_dim * (text.num_attention_heads + text.num_key_value_heads)
    return int(attention + 3 * width * text.intermediate_size)


def prefill_flops(config: FastVlmConfig, num_tokens: int) -> int:
    """FLOPs of a prompt through the decoder: linears of all tokens, causal attention, the head once."""
    text = config.text_config
    attention = text.num_hidden_layers * text.hidden_size * num_tokens * (num_tokens + 1)
    linears = num_tokens * _layer_weights(config) * text.num_hidden_layers
    return int(2 * (linears + attention + text.hidden_size * text.vocab_size))


def decoded_token_bytes(config: FastVlmConfig, bits: int, context_tokens: int = 0, cache_bytes: int = 2) -> int:
    """Bytes that one decoded token has to read: every weight once, and the cache of the tokens before it.

    Scales of quantized weights (3 to 13 %) are not counted, so a bandwidth fraction computed from this is too low.

    Args:
        config: the model's.
        bits: of a weight: 32, 16, 8 or 4.
        context_tokens: tokens in the cache.
        cache_bytes: of a number in the cache.
    """
    text = config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * context_tokens * cache_bytes
    return int(decoder_weights(config) * bits // 8 + cache)
