"""Registers FastVLM's classes with transformers' Auto classes; only on request, never at import."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from fastvlm.formats.apple_config import from_apple_config
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration, FastVlmModel
from fastvlm.hf.processor import FastVlmProcessor


class LlavaQwen2Config(FastVlmConfig):
    """Config class for Apple's ``llava_qwen2`` in ``AutoConfig``; it creates a :class:`FastVlmConfig`."""

    model_type = "llava_qwen2"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A :class:`FastVlmConfig` from Apple's flat dictionary.

        ``AutoConfig`` passes the file alone, so the result is marked: the model's `from_pretrained` then reads
        what the tensors say as well.
        """
        made = FastVlmConfig.from_dict(from_apple_config(config_dict), **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.is_provisional = True
        return made


def register() -> None:
    """Let ``AutoConfig``, ``AutoModel``, ``AutoModelForImageTextToText`` and ``AutoProcessor`` find these classes.

    For the model types ``fast_vlm`` (instead of transformers' own classes) and ``llava_qwen2``. Calling it again
    changes nothing.
    """
    AutoConfig.register(FastVlmConfig.model_type, FastVlmConfig, exist_ok=True)
    AutoConfig.register(LlavaQwen2Config.model_type, LlavaQwen2Config, exist_ok=True)
    AutoModel.register(FastVlmConfig, FastVlmModel, exist_ok=True)
    AutoModelForImageTextToText.register(FastVlmConfig, FastVlmForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(FastVlmConfig, FastVlmProcessor, exist_ok=True)
