"""FastVLM as a transformers model: vision tower, projector, decoder and head.

The decoder (Qwen2) and `generate` are transformers'; the interface is that of its documented ``fast_vlm``.
Shapes: I images, N visual tokens an image, B sequences, T tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple

from fastvlm.errors import AttentionError, ConfigError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.hf.cache_name import CACHE_NAME, cache_argument
from fastvlm.hf.checkpoint import checkpoint_of
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.generation import FastVlmGenerationMixin
from fastvlm.hf.pretrained import CheckpointLoading
from fastvlm.hf.vision_tower import FastVlmVisionTower
from fastvlm.model.joint import join_image_and_text
from fastvlm.model.projector import FastVlmMultiModalProjector, as_feature_tokens
from fastvlm.processing.processor import Processor


class _ImageOutputs:
    """`image_outputs`, the name in transformers 5.24; earlier versions have `image_hidden_states`."""

    image_hidden_states: Tensor | None

    @property
    def image_outputs(self) -> BaseModelOutputWithPooling | None:
        """`pooler_output`: projected features (I, N, D), nothing else; None for a call without images."""
        features = self.image_hidden_states
        return None if features is None else BaseModelOutputWithPooling(pooler_output=features)


@dataclass
class FastVlmModelOutputWithPast(_ImageOutputs, BaseModelOutputWithPast):  # type: ignore[misc]
    """`image_hidden_states`: projected features (I, N, D) of this call's images, or None; the rest as in Qwen2."""

    image_hidden_states: Tensor | None = None


@dataclass
class FastVlmCausalLMOutputWithPast(_ImageOutputs, CausalLMOutputWithPast):  # type: ignore[misc]
    """`logits` (B, T or fewer, V); `loss` scalar float32 if labels were given; the rest as without head."""

    image_hidden_states: Tensor | None = None


class FastVlmPreTrainedModel(CheckpointLoading):
    """Base class of all FastVLM models: config, devices, attention rules."""

    config_class = FastVlmConfig
    config: FastVlmConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = [CACHE_NAME]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The encoder has an attention of its own, so only the decoder can take another implementation."""
        if isinstance(attn_implementation, str) and attn_implementation.startswith(("flash", "flex", "paged|flash")):
            raise AttentionError(
                f"attn_implementation={attn_implementation!r} was asked for the whole model, but the FastViTHD encoder "
                "has its own attention. Ask for it in the decoder alone: "
                f'attn_implementation={{"text_config": "{attn_implementation}"}}'
            )
        return super()._check_and_adjust_attn_implementation(  # type: ignore[no-any-return]
            attn_implementation, *args, **kwargs
        )


class FastVlmModel(FastVlmPreTrainedModel):
    """Vision tower, projector and decoder, without the head."""

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__(config)
        self.vision_tower = FastVlmVisionTower(config.vision_config)
        self.multi_modal_projector = FastVlmMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embeddings."""
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode and project images.

        Args:
            pixel_values: (I, 3, H, W) in [0, 1], any floating dtype.
            vision_feature_layer, vision_feature_select_strategy: only -1 and "full" exist; anything else is an error.

        Returns:
            `last_hidden_state`: feature map (I, C, h, w) before projection; `pooler_output`: projected visual tokens
            (I, N, D); `hidden_states`: the stages' maps if asked for. A tuple of these with `return_dict=False`.
        """
        _refuse_feature_selection(vision_feature_layer, vision_feature_select_strategy)
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ConfigError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; expected (images, 3, height, width), the "
                "images of all samples one after the other."
            )
        output = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        output.pooler_output = self.multi_modal_projector(as_feature_tokens(output.last_hidden_state))
        has_names = self.config.return_dict if return_dict is None else return_dict
        return output if has_names else output.to_tuple()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> FastVlmModelOutputWithPast:
        """Run the decoder over text and images.

        Args:
            input_ids: (B, T) int64 with N placeholders for each image; or `inputs_embeds` (B, T, D), in which the
                placeholders' rows equal the embedding of ``<image>``. Exactly one of the two.
            pixel_values: (I, 3, H, W) in [0, 1], the images of all samples in the order of their placeholders.
            attention_mask: (B, T), 1 for tokens, 0 for padding on either side.
            past_key_values, cache: two names of one argument, the keys and values of earlier calls; transformers 5.24
                calls it `cache`.
            mm_encoder_outputs: ``{"image": get_image_features(...)}`` instead of `pixel_values`.

        Raises:
            ImageTokenMismatchError: placeholders and features do not match, with both counts.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("You must specify exactly one of input_ids or inputs_embeds")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ConfigError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        image: Any
        if pixel_values is not None:
            image = self.get_image_features(
                pixel_values, vision_feature_layer, vision_feature_select_strategy, return_dict=True
            )
        else:
            image = (mm_encoder_outputs or {}).get("image")
        image_embeds = None if image is None else image.pooler_output
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if image_embeds is not None:
            is_placeholder = self.get_placeholder_mask(input_ids, inputs_embeds)
            inputs_embeds = join_image_and_text(inputs_embeds, image_embeds, is_placeholder)
        output = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **cache_argument(past_key_values, cache),
            **kwargs,
        )
        return FastVlmModelOutputWithPast(**output, image_hidden_states=image_embeds)

    def get_placeholder_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Bool (B, T): where the text has an ``<image>`` token; read from the embeddings where there are no ids."""
        if inputs_embeds is None or (input_ids is not None and input_ids.shape[1] == inputs_embeds.shape[1]):
            assert input_ids is not None
            return input_ids == self.config.image_token_index
        token = torch.tensor(self.config.image_token_index, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)  # type: ignore[no-any-return]


class FastVlmForConditionalGeneration(FastVlmPreTrainedModel, FastVlmGenerationMixin):
    """FastVLM with its head: images and text in, text out."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__(config)
        self.model = FastVlmModel(config)
        self.lm_head: nn.Module = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def to_checkpoint(self, processor: Processor) -> Checkpoint:
        """This model as a checkpoint for an engine; it shares the model's tensors.

        Args:
            processor: the model's processor.

        Raises:
            UsageError: the model is in training mode, or an adapter is attached to its encoder or projector.
            ConfigError: a decoder other than plain Qwen2.
        """
        return checkpoint_of(self, processor)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """See :meth:`FastVlmModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_placeholder_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """See :meth:`FastVlmModel.get_placeholder_mask`."""
        return self.model.get_placeholder_mask(input_ids, inputs_embeds)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> FastVlmCausalLMOutputWithPast:
        """As :meth:`FastVlmModel.forward`, with logits and loss.

        Args:
            labels: (B, T) int64, -100 where nothing is learnt (images and questions); shifted inside.
            logits_to_keep: last positions to compute logits for (0: all); or an index tensor (K,) or (B, K); or a
                bool mask (B, T), which flattens the result to (number of True, V).
        """
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(_select_positions(output.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return FastVlmCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(output, CACHE_NAME)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=output.image_hidden_states,
        )


def _refuse_feature_selection(layer: int | None, strategy: str | None) -> None:
    if layer not in (None, -1):
        raise ConfigError(f"Unexpected vision feature layer: {layer}. Only -1 is supported in FastVLM.")
    if strategy not in (None, "full"):
        raise ConfigError(f"Unexpected select feature strategy: {strategy}. Only 'full' is supported in FastVLM.")


def _select_positions(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Rows of `hidden` (B, T, D) that `logits_to_keep` names (see `forward`)."""
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:]  # -0 keeps all
    if logits_to_keep.dim() == 1:
        return hidden[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep]
    return torch.take_along_dim(hidden, logits_to_keep[..., None], dim=1)
