"""Registers FastVLM's classes with transformers' Auto classes; only on request, never at import."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from fastvlm.hf.config import FastVlmConfig, LlavaQwen2Config
from fastvlm.hf.modeling import FastVlmForConditionalGeneration, FastVlmModel
from fastvlm.hf.processor import FastVlmProcessor


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
