"""The projector: visual features (I, N, 3072) -> the decoder's embedding space (I, N, D)."""

from __future__ import annotations

from torch import Tensor, nn

from fastvlm.config import DerivedNumbers
from fastvlm.errors import ConfigError


class FastVlmMultiModalProjector(nn.Module):
    """Linear, exact GELU, Linear (`mlp2x_gelu` of apple/ml-fastvlm at 592b4ad, ``multimodal_projector/builder.py``).

    Args:
        config: a :class:`fastvlm.FastVlmConfig`, or a :class:`fastvlm.config.ModelConfig`.
    """

    def __init__(self, config: DerivedNumbers) -> None:
        super().__init__()
        width, has_bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=has_bias)
        self.act = _activation(config.projector_hidden_act)
        self.linear_2 = nn.Linear(width, width, bias=has_bias)

    def forward(self, image_features: Tensor) -> Tensor:
        """Visual tokens (I, N, hidden_size) of any floating dtype -> (I, N, D) in this module's dtype."""
        x = self.linear_1(image_features.to(self.linear_1.weight.dtype))
        return self.linear_2(self.act(x))  # type: ignore[no-any-return]


def as_feature_tokens(feature_map: Tensor) -> Tensor:
    """Visual tokens (B, h * w, C), row-major, of a feature map (B, C, h, w)."""
    return feature_map.flatten(2).transpose(1, 2)


def _activation(name: str) -> nn.Module:
    """What transformers knows by `name`; it is imported for others than the published one alone."""
    if name == "gelu":
        return nn.GELU()
    from transformers.activations import ACT2FN  # noqa: PLC0415

    if name not in ACT2FN:
        raise ConfigError(
            f"projector_hidden_act is {name!r}; transformers knows no activation of that name. Published checkpoints "
            "have 'gelu'."
        )
    return ACT2FN[name]  # type: ignore[no-any-return]
