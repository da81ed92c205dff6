"""``fastvlm.load``: model and processor of a checkpoint in one call, whatever its layout."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from fastvlm.backends.devices import as_dtype, pick_device
from fastvlm.errors import CheckpointError, FastVlmError, UsageError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.folder import inspect_folder
from fastvlm.formats.json_files import check_text_files, read_json
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor

_HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load(
    name_or_folder: str | os.PathLike[str] = SHIPPED,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    *,
    attn_implementation: str | dict[str, str] | None = None,
    device_map: Any = None,
    **kwargs: Any,
) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """Open a checkpoint: ``fast_vlm`` or Apple's ``llava_qwen2``, a folder or a Hub repository.

    Args:
        name_or_folder: a folder, ``"owner/repository"`` on the Hub, or ``"mini"`` for the shipped checkpoint. A folder
            of that name wins over the Hub and over "mini".
        device: where the model goes; None for the first of cuda, mps, cpu that is there.
        dtype: torch dtype or its name; None or "auto" for the checkpoint's own. With float16 the encoder stays in
            float32: its activations would overflow.
        revision: branch, tag or commit on the Hub.
        attn_implementation: of the decoder, as in transformers; ``{"text_config": "flash_attention_2"}`` for one part.
        device_map: as in transformers (needs accelerate); instead of `device`.
        kwargs: `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder` for the Hub; the rest goes to
            :meth:`FastVlmForConditionalGeneration.from_pretrained`.

    Returns:
        The model, in eval mode, and its processor. Nothing is written to the folder, and no code from it is run.

    Raises:
        CheckpointError: not found, gated, offline and not in the cache, or not a complete FastVLM checkpoint.
        UsageError: an unknown dtype or device, or both `device` and `device_map`.
    """
    if device is not None and device_map is not None:
        raise UsageError(f"Both device={device!r} and device_map={device_map!r} were given; give one of them.")
    where = None if device_map is not None else pick_device(device)
    kwargs["dtype"] = as_dtype(dtype) or "auto"
    hub = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs}
    folder = checkpoint_path(name_or_folder, revision=revision, **hub)
    if not (folder / "config.json").is_file():
        inspect_folder(folder)  # raises: an adapter alone would be opened by transformers, with any base it names
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    if device_map is not None:
        kwargs["device_map"] = device_map
    model: FastVlmForConditionalGeneration = FastVlmForConditionalGeneration.from_pretrained(folder, **kwargs)
    model.config.name_or_path = str(name_or_folder)
    processor = load_processor(folder, model.config)
    return (model if where is None else model.to(where)).eval(), processor


def open_with_transformers(
    folder: Path, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Open the checkpoint in `folder` with transformers, for unusual layouts and precise errors; raises as `load`."""
    model, processor = load(folder, device=device, dtype=dtype)
    return model.to_checkpoint(processor)


def load_processor(folder: Path, config: FastVlmConfig) -> FastVlmProcessor:
    """The processor of the checkpoint in `folder`.

    Args:
        folder: a ``fast_vlm`` or ``llava_qwen2`` folder.
        config: the model's, for the placeholder id and the image size if no file gives it.

    Raises:
        CheckpointError: no tokenizer, or files that cannot be read.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). The model alone opens with "
            "FastVlmForConditionalGeneration.from_pretrained(folder)."
        )
    check_text_files(folder)
    try:
        return _processor(folder, config)
    except FastVlmError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise CheckpointError(
            f"The tokenizer or processor files of {folder} cannot be read: {error}. Fetch them again."
        ) from error


def _processor(folder: Path, config: FastVlmConfig) -> FastVlmProcessor:
    is_apple = read_json(folder / "config.json").get("model_type") == "llava_qwen2"
    if is_apple or (folder / "preprocessor_config.json").is_file():
        return FastVlmProcessor.from_pretrained(folder, image_token_id=config.image_token_index)
    side_px = math.isqrt(config.image_seq_length) * config.vision_config.stride_px
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, which says how large its images are ({side_px} px by its "
        f"image_seq_length). Save one: FastVlmImageProcessor(image_size={side_px}).save_pretrained(folder)."
    )
