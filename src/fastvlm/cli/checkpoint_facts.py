"""Facts about a checkpoint, from its configuration and the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastvlm.config_limits import dtype_name
from fastvlm.formats.apple_config import apple_images
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.names import EMBEDDING, HEAD
from fastvlm.formats.quantized_file import QuantizedWeights
from fastvlm.hf.config import PRESETS, FastVlmConfig, decoder_head_dim
from fastvlm.hf.image_processor import FastVlmImageProcessor

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # statistics, not parameters
_APPLE_LICENCE = (
    "This is a size that Apple publishes: Apple's FastVLM weights, and what is converted or trained from them, are for "
    "research only (Apple Machine Learning Research Model License, AMLR)."
)
_UNKNOWN_LICENCE = "No license is stated in the folder; ask whoever made the checkpoint."


@dataclass(frozen=True)
class Parameters:
    """Parameters by part; 0 for a tied head."""

    encoder: int
    projector: int
    embeddings: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(asdict(self).values())

    def weight_bytes(self) -> dict[str, int]:
        """Memory of the weights alone, by number format; int8: decoder, embeddings and head, the rest in bfloat16."""
        seeing = self.encoder + self.projector
        return {"float32": 4 * self.total, "bfloat16": 2 * self.total, "int8": self.total + seeing}


@dataclass(frozen=True)
class Images:
    """Size and fit of images, and visual tokens per image."""

    height_px: int
    width_px: int
    fit: str
    visual_tokens: int


@dataclass(frozen=True)
class CheckpointFacts:
    """What `fastvlm info` shows of the checkpoint in `folder`."""

    folder: CheckpointFolder
    config: FastVlmConfig

    @cached_property
    def parameters(self) -> Parameters:
        """Parameters by part."""
        return count_parameters(self.folder.shapes)

    @cached_property
    def images(self) -> Images:
        """Size and fit of images."""
        folder, config = self.folder, self.config
        if folder.layout == "llava_qwen2":
            stated = apple_images(folder.raw_config)
            size, fit = (stated.size_px, stated.size_px), stated.fit
        elif (folder.path / "preprocessor_config.json").is_file():
            processor = FastVlmImageProcessor.from_pretrained(folder.path)
            size, fit = processor.image_size, processor.image_fit
        else:
            side_px = math.isqrt(config.image_seq_length) * config.vision_config.stride_px
            size, fit = (side_px, side_px), "pad"
        return Images(*size, fit, config.num_visual_tokens(*size))

    @cached_property
    def size(self) -> str | None:
        """The published size with these widths and depths: "0.5b", "1.5b", "7b", "mini"; None for another."""
        return next((name for name in PRESETS if _shape_of(FastVlmConfig.preset(name)) == _shape_of(self.config)), None)

    @property
    def encoder_form(self) -> str:
        """ "fused" or "multi-branch"."""
        return "fused" if self.config.vision_config.is_inference_form else "multi-branch"

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding table."""
        folder = self.folder
        return folder.shapes[EMBEDDING][0] if EMBEDDING in folder.keys else self.config.text_config.vocab_size

    @property
    def is_head_tied(self) -> bool:
        """True if the head is the embedding table."""
        return HEAD not in self.folder.keys

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return decoder_head_dim(self.config.text_config)

    @property
    def file_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.folder.weights.files)

    @property
    def kv_bytes_per_token(self) -> dict[str, int]:
        """Memory of one token in the decoder's cache (keys and values of all layers), by number format."""
        text = self.config.text_config
        numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * self.head_dim
        return {"float32": 4 * numbers, "bfloat16": 2 * numbers}

    @property
    def license(self) -> str:
        """What the license allows."""
        return license_note(self.folder.path, self.size)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `dtype` is that of the stored decoder."""
        folder, text, vision = self.folder, self.config.text_config, self.config.vision_config
        return {
            "path": str(folder.path),
            "layout": folder.layout,
            "size": self.size,
            "dtype": dtype_name(folder.dtype),
            "num_files": len(folder.weights.files),
            "file_bytes": self.file_bytes,
            "encoder_form": self.encoder_form,
            "encoder_depths": [stage.depth for stage in vision.stages],
            "encoder_widths": [stage.channels for stage in vision.stages],
            "encoder_stride_px": vision.stride_px,
            "decoder_type": text.model_type,
            "decoder_layers": text.num_hidden_layers,
            "decoder_width": text.hidden_size,
            "decoder_heads": text.num_attention_heads,
            "decoder_kv_heads": text.num_key_value_heads,
            "head_dim": self.head_dim,
            "context_tokens": text.max_position_embeddings,
            "vocabulary_rows": self.vocabulary_rows,
            "is_head_tied": self.is_head_tied,
            "parameters": {**asdict(self.parameters), "total": self.parameters.total},
            "images": asdict(self.images),
            "license": self.license,
            "quantized": None if (found := folder.weights.quantized) is None else _quantized(found),
            "weight_bytes": self.parameters.weight_bytes(),
            "kv_bytes_per_token": self.kv_bytes_per_token,
        }


def read_facts(path: Path) -> CheckpointFacts:
    """Facts of the checkpoint in the folder `path`; no tensor is loaded.

    Raises:
        CheckpointError: it is not a complete FastVLM checkpoint.
        ConfigError: its configuration is not that of a FastVLM.
    """
    folder = inspect_folder(path)
    return CheckpointFacts(folder, FastVlmConfig.from_dict(folder.config))


def _quantized(found: QuantizedWeights) -> dict[str, Any]:
    return {**asdict(found.options), "mean_error": found.error and found.error.mean, "num_bytes": found.num_bytes}


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> Parameters:
    """Parameters by part, from canonical names and shapes."""
    counts = dict.fromkeys(("encoder", "projector", "embeddings", "decoder", "head"), 0)
    for name, shape in shapes.items():
        if not name.endswith(_BUFFERS):
            counts[_part(name)] += math.prod(shape)
    return Parameters(**counts)


def _part(name: str) -> str:
    if name == HEAD:
        return "head"
    if name == EMBEDDING:
        return "embeddings"
    if "vision_tower." in name:
        return "encoder"
    return "projector" if "multi_modal_projector." in name else "decoder"


def _shape_of(config: FastVlmConfig) -> tuple[Any, ...]:
    text, stages = config.text_config, config.vision_config.stages
    return (
        (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size),
        tuple((stage.depth, stage.channels) for stage in stages),
    )


def license_note(folder: Path, size: str | None) -> str:
    """License of the weights, from the folder's license file and the network's size."""
    files = sorted(folder.glob("LICEN[SC]E*"))
    notes = [f"{_first_line(file)} (see {file.name} in the folder)." for file in files[:1]]
    if size not in (None, "mini"):
        notes.append(_APPLE_LICENCE)
    return " ".join(notes) or _UNKNOWN_LICENCE


def _first_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), "An empty file")
