"""Costs computed from a configuration: FLOPs of the encoder and of a prompt, bytes per decoded token.

A FLOP is a multiplication or an addition, so a multiply-add (MAC) counts two. Only convolutions, linears and attention
products count, as in the literature; normalizations and activations are left out.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastvlm.hf.config import FastVlmConfig
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.model.projector import FastVlmMultiModalProjector, as_feature_tokens


def encoder_flops(config: FastVlmConfig, height_px: int, width_px: int) -> int:
    """FLOPs of encoder and projector for one image; torch counts them without computing values."""
    with torch.device("meta"), torch.no_grad():
        encoder = FastViTHD(config.vision_config).eval()
        projector = FastVlmMultiModalProjector(config)
        with FlopCounterMode(display=False) as counter:
            projector(as_feature_tokens(encoder(torch.zeros(1, 3, height_px, width_px))))
    return int(counter.get_total_flops())


def _layer_weights(config: FastVlmConfig) -> int:
    text = config.text_config
    width, head_dim = text.hidden_size, text.hidden_size // text.num_attention_heads
    attention = 2 * width * head_dim * (text.num_attention_heads + text.num_key_value_heads)
    return int(attention + 3 * width * text.intermediate_size)


def decoder_weights(config: FastVlmConfig) -> int:
    """Weights of the decoder's linears and of its head: all that one decoded token is multiplied by."""
    text = config.text_config
    return int(_layer_weights(config) * text.num_hidden_layers + text.hidden_size * text.vocab_size)


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
        bits: of a weight: 32, 16, 8 or 4; with 4 the head has 8, as it has in all programs.
        context_tokens: tokens in the cache.
        cache_bytes: of a number in the cache.
    """
    text = config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * context_tokens * cache_bytes
    head = text.hidden_size * text.vocab_size
    return int(((decoder_weights(config) - head) * bits + head * max(bits, 8)) // 8 + cache)
