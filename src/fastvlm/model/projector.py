"""The projector: visual features (I, N, 3072) -> the decoder's embedding space (I, N, D)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from fastvlm.config import FastVlmConfig
from fastvlm.errors import ConfigError

__all__ = ["FastVlmMultiModalProjector"]


class FastVlmMultiModalProjector(nn.Module):
    """Linear, exact GELU, Linear (`mlp2x_gelu` of apple/ml-fastvlm at 592b4ad, ``multimodal_projector/builder.py``)."""

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__()
        if config.projector_hidden_act not in ACT2FN:
            raise ConfigError(
                f"projector_hidden_act is {config.projector_hidden_act!r}; transformers knows no activation of that "
                "name. Published checkpoints have 'gelu'."
            )
        width, has_bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=has_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=has_bias)

    def forward(self, image_features: Tensor) -> Tensor:
        """Visual tokens (I, N, hidden_size) of any floating dtype -> (I, N, D) in this module's dtype."""
        x = self.linear_1(image_features.to(self.linear_1.weight.dtype))
        return self.linear_2(self.act(x))  # type: ignore[no-any-return]
