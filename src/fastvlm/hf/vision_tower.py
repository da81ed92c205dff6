"""FastViTHD as a transformers model.

Shapes: I images of H x W pixels; the feature map is (I, C, h, w) with ``h = ceil(H / 64)``, ``w = ceil(W / 64)``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastvlm.errors import AttentionError
from fastvlm.hf.config import FastViTHDConfig
from fastvlm.model.fastvithd import FastViTHD, init_weights


class FastVlmVisionTower(PreTrainedModel):  # type: ignore[misc]
    """FastViTHD as a transformers model; `timm_model` is the attribute's name in ``fast_vlm`` checkpoints."""

    config_class = FastViTHDConfig
    config: FastViTHDConfig
    base_model_prefix = "timm_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["FastVlmVisionTower"]
    # Activations inside the encoder reach 6e4, the end of float16 (65504): float16 models keep it in float32.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["timm_model"]

    def __init__(self, config: FastViTHDConfig) -> None:
        super().__init__(config)
        self.timm_model = FastViTHD(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not init_weights(module, std=self.config.initializer_range):
            super()._init_weights(module)

    def get_input_embeddings(self) -> None:
        """None: the encoder reads images."""

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Feature map (I, C, h, w) as `last_hidden_state` of `pixel_values` (I, 3, H, W) in [0, 1], cast to this dtype.

        `hidden_states` are the stages' maps. `output_attentions` raises, because the encoder keeps none.
        """
        if output_attentions:
            raise AttentionError(
                "Cannot set `output_attentions` for the FastViTHD encoder: it keeps no attention maps."
            )
        with_stages = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        feature_map, stage_maps = self._encode(pixel_values.to(self.device), bool(with_stages))
        output = BaseModelOutputWithPooling(last_hidden_state=feature_map, hidden_states=stage_maps)
        has_names = self.config.return_dict if return_dict is None else return_dict
        return output if has_names else output.to_tuple()

    def _encode(self, pixel_values: Tensor, with_stages: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        encoder = _StagesOnDemand(self.timm_model, with_stages)
        if self.dtype != torch.float16:
            return encoder(pixel_values.to(self.dtype))  # type: ignore[no-any-return]
        # After `.half()` the weights are float16 all the same: compute this call in float32.
        upcast = {name: t.float() if t.is_floating_point() else t for name, t in encoder.state_dict().items()}
        return functional_call(encoder, upcast, pixel_values.float())  # type: ignore[no-any-return]


class _StagesOnDemand(nn.Module):
    """Calls the encoder with or without its stages' maps, through one `forward`."""

    def __init__(self, encoder: FastViTHD, with_stages: bool) -> None:
        super().__init__()
        self.encoder, self.with_stages = encoder, with_stages

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        return (
            self.encoder.forward_with_stages(pixel_values) if self.with_stages else (self.encoder(pixel_values), None)
        )
