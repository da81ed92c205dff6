"""A plain checkpoint opened for an engine on a CPU without transformers, whose import takes longer than all the rest.

What is opened gives the engine the same weights, settings, prompts and texts as :func:`fastvlm.load` does. Whatever is
out of the ordinary, wrong files among it, is not opened here: None is returned, and `load` opens it or says what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvlm.backends.light import LightFastVlm, LightGenerationConfig
from fastvlm.config import LightConfig, light_config
from fastvlm.errors import CheckpointError, ConfigError
from fastvlm.formats.apple_config import apple_image_settings
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.json_files import check_text_files, read_json, read_text
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.names import ENCODER
from fastvlm.processing.image_processor import LightImageProcessor
from fastvlm.processing.processor import LightProcessor
from fastvlm.processing.stored import stored_settings
from fastvlm.processing.tokenizer import LightTokenizer

__all__ = ["open_light"]

_DTYPES = {torch.bfloat16, torch.float16, torch.float32}
_NOT_PLAIN_FILES = (
    "adapter_config.json",
    "additional_chat_templates",
    "audio_tokenizer_config.json",
    "chat_template.json",
)
_NOT_PLAIN_KEYS = ("audio_tokenizer", "image_processor")


def open_light(
    folder: Path, tokenizer: Callable[[], LightTokenizer | None]
) -> tuple[LightFastVlm, LightProcessor] | None:
    """Model and processor of the checkpoint in `folder` for :func:`fastvlm.fast_engine` on a CPU, or None.

    Weights are mapped, in the dtype of the files; products stored in 8 or 4 bits are left out of the model and handed
    over as its `stored_products`.

    Args:
        folder: ``fast_vlm`` or Apple's ``llava_qwen2``.
        tokenizer: gives the folder's, which may be read by another thread meanwhile.
    """
    if any((folder / name).exists() for name in _NOT_PLAIN_FILES):
        return None
    try:
        check_text_files(folder)
        found = inspect_folder(folder)
        config = None if "quantization_config" in found.raw_config else light_config(found.config)
        model = None if config is None or found.is_bare else _model(found, config)
        image_processor, settings = _images(found), _settings(folder)
    except (CheckpointError, ConfigError):
        return None
    opened = tokenizer()
    if config is None or model is None or image_processor is None or settings is None or opened is None:
        return None
    processor = LightProcessor(
        image_processor, opened, image_token_id=config.image_token_index, **stored_settings(settings, source=folder)
    )
    return model, processor


def _model(found: CheckpointFolder, config: LightConfig) -> LightFastVlm | None:
    """The model, if the files hold its tensors and no others, all in the dtype that they are opened in."""
    floating = {entry.dtype for entry in found.weights.entries.values() if entry.dtype.is_floating_point}
    stated = found.config.get("dtype", found.config.get("torch_dtype"))
    if len(floating) != 1 or not floating <= _DTYPES or stated not in (None, *map(_name, floating)):
        return None
    generation = _generation_config(found)
    if generation is None:
        return None
    if found.weights.quantized is not None:
        found.weights.left_out_dtype = found.dtype
    tensors = {key: found.tensor(key) for key in found.keys}
    if torch.float16 in floating:  # too small for the encoder's activations, so its weights are not left in it
        tensors |= {key: tensor.float() for key, tensor in tensors.items() if key.startswith(ENCODER)}
    try:
        model = LightFastVlm(config, tensors, generation)
    except RuntimeError:  # torch's for a state dict with other names or shapes
        return None
    model.stored_products = found.weights.quantized
    model.mapped_files = MappedFiles(found.weights.files)
    return model


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _generation_config(found: CheckpointFolder) -> LightGenerationConfig | None:
    """As :func:`fastvlm.hf.pretrained.generation_config_of` tells it, as far as an engine asks."""
    file = found.path / "generation_config.json"
    if found.dialect != "fast_vlm" or not file.is_file():
        return LightGenerationConfig()  # the decoder's own end tokens, which are asked for anyway
    stored = read_json(file)
    ends: Any = stored.get("eos_token_id") if isinstance(stored, dict) else "?"
    is_known = ends is None or all(type(token) is int for token in (ends if isinstance(ends, list) else [ends]))
    return LightGenerationConfig(ends) if is_known else None


def _settings(folder: Path) -> dict[str, Any] | None:
    """The processor's file and the chat template beside it, as transformers puts them together."""
    file, template = folder / "processor_config.json", folder / "chat_template.jinja"
    stored = read_json(file) if file.is_file() else {}
    if not isinstance(stored, dict) or any(key in stored for key in _NOT_PLAIN_KEYS):
        return None
    if stored.get("chat_template") is None and template.is_file():
        stored["chat_template"] = read_text(template)
    return stored


def _images(found: CheckpointFolder) -> LightImageProcessor | None:
    file = found.path / "preprocessor_config.json"
    settings = _settings(found.path) or {}
    given = {key: settings[key] for key in ("patch_size",) if settings.get(key) is not None}
    if found.dialect == "llava_qwen2":
        return LightImageProcessor(**apple_image_settings(found.raw_config), **given)
    stored = read_json(file) if file.is_file() else None
    return LightImageProcessor.from_dict(stored, **given) if isinstance(stored, dict) else None
