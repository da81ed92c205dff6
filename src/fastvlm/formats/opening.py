"""A checkpoint's folder -> :class:`Checkpoint`, without transformers, whose import takes longer than all the rest.

Every published layout is opened: ``fast_vlm``, Apple's ``llava_qwen2``, and what ``fastvlm quantize`` writes. Anything
out of the ordinary raises :class:`UnusualCheckpointError`, and :mod:`fastvlm.opening` then asks transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.config import read_config
from fastvlm.errors import UnusualCheckpointError
from fastvlm.formats.apple_config import apple_image_settings
from fastvlm.formats.checkpoint import Checkpoint, LazyTensors, RotaryPositions
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.json_files import check_text_files, read_json, read_text
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.names import ENCODER
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor
from fastvlm.processing.stored import stored_settings
from fastvlm.processing.tokenizer import Tokenizer, open_tokenizer

__all__ = ["open_folder"]

_DTYPES = {torch.bfloat16, torch.float16, torch.float32}
_UNUSUAL_FILES = (
    "adapter_config.json",
    "additional_chat_templates",
    "audio_tokenizer_config.json",
    "chat_template.json",
)
_UNUSUAL_PROCESSOR_KEYS = ("audio_tokenizer", "image_processor")


def open_folder(folder: Path, tokenizer: Callable[[], Tokenizer] | None = None) -> Checkpoint:
    """The checkpoint in `folder`; it is not changed, and weights stay in their files until they are used.

    Args:
        folder: of any published layout.
        tokenizer: gives the folder's tokenizer, if another thread is reading it already.

    Raises:
        UnusualCheckpointError: there is something in it that only transformers can open, or say what is wrong with.
        CheckpointError: not a complete checkpoint.
        ConfigError: image settings of another model.
    """
    for name in _UNUSUAL_FILES:
        if (folder / name).exists():
            raise UnusualCheckpointError(f"{folder} has a file {name}.")
    check_text_files(folder)
    found = inspect_folder(folder)
    if "quantization_config" in found.raw_config:
        raise UnusualCheckpointError(f"{folder / 'config.json'} has a quantization_config.")
    config, settings = read_config(found.config), _processor_settings(folder)
    dtype, quantized = _dtype(found), found.weights.quantized
    ends = _end_tokens(found)
    opened = open_tokenizer(folder) if tokenizer is None else tokenizer()
    processor = Processor(
        _image_processor(found, settings),
        opened,
        image_token_id=config.image_token_index,
        **stored_settings(settings, source=folder),
    )
    return Checkpoint(
        config=config,
        tensors=LazyTensors(frozenset(found.keys), _reader(found, dtype)),
        processor=processor,
        stop_token_ids=frozenset(config.stop_token_ids) | ends,
        dtype=dtype,
        rotary=RotaryPositions.default(config.text_config.rope_theta, config.text_config.head_dim),
        rounded={} if quantized is None else {product.names: product.weight for product in quantized.products},
        bits=None if quantized is None else quantized.options.bits,
        files=MappedFiles(found.weights.files),
    )


def _dtype(found: CheckpointFolder) -> torch.dtype:
    """The one floating dtype of all tensors, which config.json must not contradict."""
    floating = {entry.dtype for entry in found.weights.entries.values() if entry.dtype.is_floating_point}
    stated = found.config.get("dtype", found.config.get("torch_dtype"))
    if len(floating) != 1 or not floating <= _DTYPES or stated not in (None, *map(_dtype_name, floating)):
        dtypes = ", ".join(sorted(map(_dtype_name, floating)))
        raise UnusualCheckpointError(f"{found.path} has tensors of {dtypes}, and config.json says {stated}.")
    return floating.pop()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reader(found: CheckpointFolder, dtype: torch.dtype) -> Callable[[str], Tensor]:
    """Reads tensors by canonical name. The encoder's activations overflow float16, so its weights are turned."""
    if dtype != torch.float16:
        return found.tensor

    def read(name: str) -> Tensor:
        tensor = found.tensor(name)
        return tensor.float() if name.startswith(ENCODER) and tensor.is_floating_point() else tensor

    return read


def _end_tokens(found: CheckpointFolder) -> frozenset[int]:
    """`eos_token_id` of generation_config.json. Apple's file is not asked: it names no end token."""
    file = found.path / "generation_config.json"
    if found.dialect != "fast_vlm" or not file.is_file():
        return frozenset()
    stored = read_json(file)
    ends: Any = stored.get("eos_token_id") if isinstance(stored, dict) else "?"
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(token) is int for token in ids):
        raise UnusualCheckpointError(f"{file} has the end tokens {str(ends)[:80]!r}.")
    return frozenset(ids)


def _processor_settings(folder: Path) -> dict[str, Any]:
    """processor_config.json and the chat template beside it, put together as transformers does."""
    file, template = folder / "processor_config.json", folder / "chat_template.jinja"
    stored = read_json(file) if file.is_file() else {}
    if not isinstance(stored, dict):
        raise UnusualCheckpointError(f"{file} is no object.")
    for key in _UNUSUAL_PROCESSOR_KEYS:
        if key in stored:
            raise UnusualCheckpointError(f"{file} has the key {key!r}.")
    if stored.get("chat_template") is None and template.is_file():
        stored["chat_template"] = read_text(template)
    return stored


def _image_processor(found: CheckpointFolder, settings: dict[str, Any]) -> ImageProcessor:
    given = {key: settings[key] for key in ("patch_size",) if settings.get(key) is not None}
    if found.dialect == "llava_qwen2":
        return ImageProcessor(**apple_image_settings(found.raw_config), **given)
    file = found.path / "preprocessor_config.json"
    stored = read_json(file) if file.is_file() else None
    if not isinstance(stored, dict):
        raise UnusualCheckpointError(f"{found.path} has no preprocessor_config.json.")
    processor: ImageProcessor = ImageProcessor.from_dict(stored, **given)
    return processor
