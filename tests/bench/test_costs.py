"""Counted from the configuration = counted by torch while the network runs."""

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastvlm import FastVlmConfig
from fastvlm.bench.costs import decoded_token_bytes, decoder_weights, encoder_flops, prefill_flops
from fastvlm.hf.config import PRESETS


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_the_published_encoder_costs_what_is_published():
    config = FastVlmConfig.preset("0.5b")
    projector = 2 * 256 * 896 * (3072 + 896)
    assert encoder_flops(config, 1024, 1024) - projector == pytest.approx(2 * 243e9, rel=0.01)


def test_encoder_flops_are_those_of_the_models_features():
    model, config = tiny.model().to("meta"), tiny.config()  # torch does not count the CPU's fused attention
    pixels = torch.zeros(1, 3, 128, 192, device="meta")
    assert encoder_flops(config, 128, 192) == counted(lambda: model.get_image_features(pixels))


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_prefill_flops_are_torchs_with_half_of_the_attention(tokens):
    """torch counts the masked half of attention too; causal, it is n (n + 1) / 2 products a head instead of n * n."""
    model, config = tiny.model().to("meta"), tiny.config()
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    text = config.text_config
    skipped = 2 * text.num_hidden_layers * text.hidden_size * tokens * (tokens - 1)
    assert prefill_flops(config, tokens) == counted(lambda: model(input_ids=ids, logits_to_keep=1)) - skipped


@pytest.mark.parametrize("preset", PRESETS)
def test_decoder_weights_are_the_models(preset):
    config = FastVlmConfig.preset(preset)
    from fastvlm import FastVlmForConditionalGeneration

    with torch.device("meta"):
        model = FastVlmForConditionalGeneration(config)
    linears = [m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert decoder_weights(config) == sum(m.weight.numel() for m in [*linears, model.lm_head])


def test_bytes_of_a_token():
    config = FastVlmConfig.preset("0.5b")
    assert decoded_token_bytes(config, 16) == pytest.approx(988e6, rel=0.01)
    assert decoded_token_bytes(config, 8) == decoder_weights(config)
    head = 896 * 152000
    assert decoded_token_bytes(config, 4) == (decoder_weights(config) + head) // 2
    assert decoded_token_bytes(config, 16, context_tokens=100) - decoded_token_bytes(config, 16) == 100 * 12288
