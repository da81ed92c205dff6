"""The folder that Apple's FastVLM app loads: the encoder for Core ML, projector and decoder for MLX.

The app (apple/ml-fastvlm, ``app/FastVLM/FastVLM.swift``) renames no weights, so these have its own names. It takes 256
features of 3072 numbers for each image, which is an encoder of the published widths at 1024 px.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from fastvlm.conversion.shards import PlannedTensor, split_into_shards, write_index, write_safetensors
from fastvlm.export.source import ExportSource
from fastvlm.formats.apple_config import to_apple_config
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import DECODER, HEAD, PROJECTOR
from fastvlm.processing.prompt import IMAGE_TOKEN

ENCODER_PACKAGE = "fastvithd.mlpackage"
_FEATURES = (256, 3072)  # that the app's code expects
_SHARD_BYTES = 2 * 10**9
_RULES = (
    (re.escape(PROJECTOR) + r"linear_1\.", "multi_modal_projector.linear_0."),  # index 1 is the GELU
    (re.escape(PROJECTOR) + r"linear_2\.", "multi_modal_projector.linear_2."),
    (re.escape(DECODER), "language_model.model."),
    (re.escape(HEAD), f"language_model.{HEAD}"),
)


def write_app_weights(source: ExportSource, folder: Path) -> None:
    """Write projector and decoder in float16, with configuration and tokenizer, into `folder`."""
    names = {name: found for name in source.checkpoint.tensors if (found := app_name(name)) is not None}
    tensors = [_planned(source.checkpoint, name, found) for name, found in names.items()]
    shards = split_into_shards(tensors, _SHARD_BYTES)
    for name, shard in shards.items():
        write_safetensors(folder / name, shard, metadata={"format": "mlx"})
    write_index(folder, shards)
    side = {"height": source.side_px, "width": source.side_px}
    write_json(folder / "config.json", _config(source))
    write_json(
        folder / "preprocessor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_mean": [0.0, 0.0, 0.0],
            "image_std": [1.0, 1.0, 1.0],
            "size": {"shortest_edge": source.side_px},
            "crop_size": side,
        },
    )
    processor = {"processor_class": "LlavaProcessor", "image_token": IMAGE_TOKEN, "patch_size": 64}
    write_json(folder / "processor_config.json", {**processor, "num_additional_image_tokens": 0})
    write_tokenizer_files(source, folder)


def _planned(checkpoint: Checkpoint, name: str, found: str) -> PlannedTensor:
    """The tensor `name` in float16 under the name `found`, read when it is written."""
    shape = tuple(checkpoint.tensors[name].shape)
    return PlannedTensor(found, shape, torch.float16, lambda: checkpoint.tensors[name])


def app_name(name: str) -> str | None:
    """The app's name of a tensor of the checkpoint; None for the encoder's."""
    for pattern, replacement in _RULES:
        found, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return found
    return None


def app_warnings(source: ExportSource) -> tuple[str, ...]:
    """A warning if the app's code expects other features than this encoder gives."""
    found = source.tokens_per_image, source.checkpoint.config.vision_config.hidden_size
    if found == _FEATURES:
        return ()
    warning = (
        f"an image has {found[0]} features of {found[1]} numbers here, and the code of Apple's app expects "
        f"{_FEATURES[0]} of {_FEATURES[1]}: change the numbers in its FastVLM.swift."
    )
    return (warning,)


def write_tokenizer_files(source: ExportSource, folder: Path) -> None:
    """``tokenizer.json`` with the placeholder, and its settings."""
    source.checkpoint.processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(source.folder / "tokenizer_config.json", folder / "tokenizer_config.json")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(source: ExportSource) -> dict[str, Any]:
    checkpoint: Checkpoint = source.checkpoint
    images = checkpoint.processor.image_processor
    content = to_apple_config(dict(source.config), size_px=source.side_px, fit=images.image_fit)
    return content | {
        "image_token_index": checkpoint.config.image_token_index,
        "tie_word_embeddings": HEAD not in checkpoint.tensors,
        "torch_dtype": "float16",
        "vocab_size": checkpoint.config.text_config.vocab_size,
    }
