"""The projector: two layers and an exact GELU between them."""

import pytest
import tiny
import torch

from fastvlm.errors import ConfigError
from fastvlm.model.projector import FastVlmMultiModalProjector


def test_is_linear_gelu_linear():
    projector = tiny.loud(FastVlmMultiModalProjector(tiny.config())).double()
    x = torch.randn(2, 4, 256, dtype=torch.float64)
    hidden = x @ projector.linear_1.weight.T + projector.linear_1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # exact, not the tanh approximation
    torch.testing.assert_close(projector(x), hidden @ projector.linear_2.weight.T + projector.linear_2.bias)


@pytest.mark.parametrize(("preset_widths", "parameters"), [(896, 3_557_120), (1536, 7_080_960), (3584, 23_862_272)])
def test_published_sizes(preset_widths, parameters):
    from fastvlm import FastVlmConfig

    text = {**tiny.text_config(hidden_size=preset_widths), "vocab_size": 151_647}
    with torch.device("meta"):
        projector = FastVlmMultiModalProjector(FastVlmConfig(text_config=text))
    assert sum(p.numel() for p in projector.parameters()) == parameters


def test_without_biases():
    projector = FastVlmMultiModalProjector(tiny.config(multimodal_projector_bias=False))
    assert {name for name, _ in projector.named_parameters()} == {"linear_1.weight", "linear_2.weight"}


def test_features_are_cast_to_its_own_dtype():
    projector = FastVlmMultiModalProjector(tiny.config()).bfloat16()
    assert projector(torch.randn(1, 4, 256)).dtype == torch.bfloat16


def test_unknown_activation_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'gelo'.*Published checkpoints have 'gelu'"):
        FastVlmMultiModalProjector(tiny.config(projector_hidden_act="gelo"))
