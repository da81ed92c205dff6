"""FastVLM's processor inside vLLM: limits, dummy inputs, placeholders of each image.

The interfaces are those of vLLM 0.29 to 0.33: ``vllm/multimodal/processing``, ``vllm/model_executor/models/llava.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.integrations.vllm_plugin import missing_vllm
from fastvlm.integrations.vllm_weights import refuse_rounded_weights
from fastvlm.processing.prompt import IMAGE_TOKEN
from fastvlm.processing.stored import add_image_token

try:
    from vllm.multimodal.inputs import MultiModalFieldConfig
    from vllm.multimodal.parse import ImageEmbeddingItems
    from vllm.multimodal.processing import (
        BaseDummyInputsBuilder,
        BaseMultiModalProcessor,
        BaseProcessingInfo,
        PromptReplacement,
    )
except ModuleNotFoundError as _error:
    raise missing_vllm(_error) from _error

_TURN_END = "<|im_end|>"


class FastVlmInfo(BaseProcessingInfo):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What vLLM asks about a checkpoint before it runs.

    Raises:
        CheckpointError: a folder whose weights vLLM does not read.
        ConfigError: a tokenizer that does not belong to the model.
    """

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        refuse_rounded_weights(ctx.model_config.model)
        if ctx.tokenizer is not None:
            _prepare_tokenizer(ctx.tokenizer, self.get_hf_config().image_token_index)

    def get_hf_config(self) -> FastVlmConfig:
        """The model's configuration."""
        return self.ctx.get_hf_config(FastVlmConfig)  # type: ignore[no-any-return]

    def get_hf_processor(self, **_: object) -> FastVlmProcessor:
        """The processor. `image_size` and `image_fit` are arguments of its call, so they are not needed here."""
        model = self.ctx.model_config
        return _processor(model.model, model.revision, self.get_hf_config().image_token_index)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images in one prompt; ``--limit-mm-per-prompt`` sets one."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Placeholders of one image; all images take the same number."""
        del seq_len, mm_counts
        return {"image": self.num_visual_tokens({})}

    def num_visual_tokens(self, mm_kwargs: Mapping[str, object]) -> int:
        """Placeholders of one image, by a request's `mm_kwargs` and the engine's, which vLLM does not merge itself."""
        settings = self.ctx.get_merged_mm_kwargs(mm_kwargs)
        settings = {**settings, **settings.get("images_kwargs", {})}  # as the processor reads them
        return self.get_hf_processor().image_processor.num_visual_tokens(settings.get("image_size"))


class FastVlmDummyInputs(BaseDummyInputsBuilder[FastVlmInfo]):  # type: ignore[misc]
    """Inputs with which vLLM measures the memory that it needs."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A prompt with so many images."""
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """So many images of the size that the model sees."""
        del seq_len
        height, width = self.info.get_hf_processor().image_processor.image_size
        count, overrides = mm_counts.get("image", 0), mm_options.get("image")
        return {"image": self._get_dummy_images(width=width, height=height, num_images=count, overrides=overrides)}


class FastVlmMultiModalProcessor(BaseMultiModalProcessor[FastVlmInfo]):  # type: ignore[misc]
    """Says which outputs of the processor belong to which image, and replaces each ``<image>`` by placeholders."""

    def _get_mm_fields_config(
        self, hf_inputs: Mapping[str, Any], hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        del hf_inputs, hf_processor_mm_kwargs
        return {name: MultiModalFieldConfig.batched("image") for name in ("pixel_values", "image_embeds")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        del out_mm_kwargs
        token_id = self.info.get_hf_config().image_token_index

        def placeholders(index: int) -> list[int]:
            images = mm_items["image"]
            if isinstance(images, ImageEmbeddingItems):
                return [token_id] * images.get_feature_size(index)
            return [token_id] * self.info.num_visual_tokens(hf_processor_mm_kwargs)

        return [PromptReplacement(modality="image", target=[token_id], replacement=placeholders)]


@lru_cache(maxsize=4)  # vLLM makes several `FastVlmInfo` for one checkpoint
def _processor(model: str, revision: str | None, image_token_id: int) -> FastVlmProcessor:
    return FastVlmProcessor.from_pretrained(model, revision=revision, image_token_id=image_token_id)


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> None:
    """Give vLLM's tokenizer ``<image>``, and the end of a turn as its end of a reply.

    Apple's folders have neither: vLLM ends replies at the tokenizer's own end token, so they would run on to their
    limit of tokens.
    """
    add_image_token(tokenizer, expected_id=image_token_id)
    if _TURN_END in tokenizer.get_vocab():
        tokenizer.eos_token = _TURN_END
