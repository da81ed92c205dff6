"""`generate` of transformers with FastVLM's end tokens, image caching and context check."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastvlm.hf.config import FastVlmConfig
from fastvlm.model.finite import check_scores
from fastvlm.model.joint import check_image_token_counts, refuse_overlong


class FastVlmGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """FastVLM's additions to `generate`; mixed into the model with the head."""

    config: FastVlmConfig

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, with four guarantees for every generation config.

        Every reply ends at the decoder's end tokens (``<|im_end|>``, ``<|endoftext|>``); each image is encoded once
        a reply, beams or not; a prompt that cannot fit is refused before anything is computed; NaN is an error
        and not a token.

        Raises:
            ContextLengthError: prompt plus `max_new_tokens` exceed the decoder's context.
            NonFiniteError: logits that are NaN or infinite.
        """
        given = [kwargs, *(vars(config) for config in (generation_config, self.generation_config) if config)]
        self._refuse_overflow(kwargs.get("input_ids", inputs), given, kwargs.get("inputs_embeds"))
        stops = self._stop_settings(given)
        if generation_config is None:
            kwargs.update(stops)
        else:  # transformers takes either a config or arguments
            generation_config = copy.deepcopy(generation_config)
            generation_config.update(**stops)
            kwargs = {name: value for name, value in kwargs.items() if name not in stops}
        _warn_of_emulated_bfloat16(self.device, self.dtype)
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None:
            kwargs["mm_encoder_outputs"] = {"image": self.get_image_features(pixel_values, return_dict=True)}
        processors = LogitsProcessorList([_RefuseNonFinite(), *(logits_processor or [])])
        return super().generate(inputs, generation_config, processors, *args, **kwargs)

    def _stop_settings(self, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`eos_token_id` with the decoder's own end tokens added, and a `pad_token_id` where there is none."""
        asked = _first_set("eos_token_id", given)
        asked = asked.tolist() if isinstance(asked, Tensor) else asked
        asked = [] if asked is None else asked if isinstance(asked, list) else [asked]
        stops = list(dict.fromkeys([*asked, *self.config.stop_token_ids]))
        if not stops:
            return {}
        pad = _first_set("pad_token_id", given)
        return {"eos_token_id": stops, "pad_token_id": stops[-1] if pad is None else pad}

    def _refuse_overflow(
        self, input_ids: Tensor | None, given: Sequence[Mapping[str, Any]], inputs_embeds: Tensor | None
    ) -> None:
        prompt = input_ids if input_ids is not None else inputs_embeds
        if prompt is None:
            return
        new = _first_set("max_new_tokens", given)
        if new is None:  # `max_length` counts the prompt too
            new = (_first_set("max_length", given) or 0) - prompt.shape[1]
        self.check_context(prompt.shape[1], max(new, 1))

    def check_context(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise ContextLengthError if a prompt of `prompt_tokens` and a reply of `new_tokens` exceed the context."""
        refuse_overlong(self.config.text_config.max_position_embeddings, prompt_tokens, new_tokens)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,  # named, because transformers looks for the name
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one decoding step; after the first, the cache holds the images."""
        step: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            step.pop("mm_encoder_outputs", None)
        return step

    # A static method in older transformers.
    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat each sample `expand_size` times (beams, several replies), its images' features with it."""
        image = (model_kwargs.pop("mm_encoder_outputs", None) or {}).get("image")
        if image is not None and expand_size > 1:
            features = image.pooler_output
            is_placeholder = self.get_placeholder_mask(input_ids, model_kwargs.get("inputs_embeds"))
            check_image_token_counts(is_placeholder, num_images=features.shape[0], tokens_per_image=features.shape[1])
            groups = features.split((is_placeholder.sum(-1) // features.shape[1]).tolist())
            repeated = torch.cat([group.repeat(expand_size, 1, 1) for group in groups])
            image = BaseModelOutputWithPooling(pooler_output=repeated)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if image is not None:
            model_kwargs["mm_encoder_outputs"] = {"image": image}
        return input_ids, model_kwargs


@functools.cache
def _warn_of_emulated_bfloat16(device: torch.device, dtype: torch.dtype) -> None:
    """Warn once if bfloat16, the dtype of checkpoints, is emulated on this CPU: 20 times as slow."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        warnings.warn(
            "This CPU has no bfloat16 arithmetic, so a model in bfloat16 is many times slower here than in float32. "
            "Load it with dtype=torch.float32, or ask with fastvlm's engine (`fastvlm ask`), which does so by itself.",
            UserWarning,
            stacklevel=4,
        )


class _RefuseNonFinite(LogitsProcessor):  # type: ignore[misc]
    """Raises NonFiniteError where a row of scores (B, V) has no finite largest: greedy search would take token 0."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_scores(scores)
        return scores


def _first_set(name: str, given: Sequence[Mapping[str, Any]]) -> Any:
    """The value of a setting: the first that is set among arguments, given config and model config."""
    return next((settings[name] for settings in given if settings.get(name) is not None), None)
