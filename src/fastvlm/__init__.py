"""FastVLM: ask questions about images, fast.

Names are loaded when they are used: ``import fastvlm`` loads neither torch nor transformers, registers nothing and
looks at nothing.

    from fastvlm import FastVLM

    FastVLM("mini").ask("photo.jpg", "What is this?")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvlm.api import AsyncFastVLM, FastVLM
    from fastvlm.conversion.convert import convert
    from fastvlm.encoder_config import num_visual_tokens
    from fastvlm.engine.async_engine import AsyncEngine
    from fastvlm.engine.engine import Engine
    from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
    from fastvlm.hf.config import FastViTHDConfig, FastVlmConfig
    from fastvlm.hf.image_processor import FastVlmImageProcessor
    from fastvlm.hf.loading import load
    from fastvlm.hf.modeling import FastVlmForConditionalGeneration, FastVlmModel, FastVlmPreTrainedModel
    from fastvlm.hf.modeling import FastVlmForConditionalGeneration as AutoModelForImageTextToText
    from fastvlm.hf.processor import FastVlmProcessor
    from fastvlm.hf.processor import FastVlmProcessor as AutoProcessor
    from fastvlm.hf.registration import register
    from fastvlm.images import open_image
    from fastvlm.images.media import open_frames
    from fastvlm.model.fastvithd import FastViTHD
    from fastvlm.opening import open_checkpoint

__version__ = "0.2.0"

# The names that transformers' documented examples import, so that they run with `fastvlm` in place of `transformers`.
_SAME_AS = {"AutoModelForImageTextToText": "FastVlmForConditionalGeneration", "AutoProcessor": "FastVlmProcessor"}

_HOME_OF = {
    "AsyncEngine": "fastvlm.engine.async_engine",
    "AsyncFastVLM": "fastvlm.api",
    "Completion": "fastvlm.engine.types",
    "Engine": "fastvlm.engine.engine",
    "FastVLM": "fastvlm.api",
    "FastViTHD": "fastvlm.model.fastvithd",
    "FastViTHDConfig": "fastvlm.hf.config",
    "FastVlmConfig": "fastvlm.hf.config",
    "FastVlmForConditionalGeneration": "fastvlm.hf.modeling",
    "FastVlmImageProcessor": "fastvlm.hf.image_processor",
    "FastVlmModel": "fastvlm.hf.modeling",
    "FastVlmPreTrainedModel": "fastvlm.hf.modeling",
    "FastVlmProcessor": "fastvlm.hf.processor",
    "SamplingParams": "fastvlm.engine.types",
    "TokenEvent": "fastvlm.engine.types",
    "convert": "fastvlm.conversion.convert",
    "load": "fastvlm.hf.loading",
    "num_visual_tokens": "fastvlm.encoder_config",
    "open_checkpoint": "fastvlm.opening",
    "open_frames": "fastvlm.images.media",
    "open_image": "fastvlm.images",
    "register": "fastvlm.hf.registration",
}

__all__ = [
    "AsyncEngine",
    "AsyncFastVLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "Completion",
    "Engine",
    "FastVLM",
    "FastViTHD",
    "FastViTHDConfig",
    "FastVlmConfig",
    "FastVlmForConditionalGeneration",
    "FastVlmImageProcessor",
    "FastVlmModel",
    "FastVlmPreTrainedModel",
    "FastVlmProcessor",
    "SamplingParams",
    "TokenEvent",
    "__version__",
    "convert",
    "load",
    "num_visual_tokens",
    "open_checkpoint",
    "open_frames",
    "open_image",
    "register",
]


def __getattr__(name: str) -> Any:
    name = _SAME_AS.get(name, name)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastvlm' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    except (ImportError, RuntimeError) as error:
        from fastvlm.import_failures import explain_import_failure  # noqa: PLC0415 - only failures need it

        explanation = explain_import_failure(error)
        if explanation is None:
            raise
        raise explanation from error


def __dir__() -> list[str]:
    return sorted(__all__)
