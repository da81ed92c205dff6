"""``fastvlm.load``: model and processor of a checkpoint in one call, whatever its layout."""

from __future__ import annotations

import os
from typing import Any

import torch

from fastvlm.backends.devices import as_dtype, pick_device
from fastvlm.errors import UsageError
from fastvlm.formats.folder import inspect_folder
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.hf.processor_files import load_processor

__all__ = ["SHIPPED", "as_dtype", "checkpoint_path", "load", "pick_device"]


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


_HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
