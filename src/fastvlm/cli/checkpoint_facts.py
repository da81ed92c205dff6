"""Facts about a checkpoint, from its configuration and the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm.formats.apple_config import apple_images
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.names import EMBEDDING, HEAD
from fastvlm.hf.config import PRESETS, FastVlmConfig
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
class Quantized:
    """Quantization of the decoder, and the size of its weights."""

    bits: int
    group_size: int
    head_bits: int
    mean_error: float
    num_bytes: int


@dataclass(frozen=True)
class CheckpointFacts:
    """Everything that `fastvlm info` prints; `dtype` is that of the stored decoder."""

    path: Path
    layout: str
    size: str | None  # "0.5b", "1.5b", "7b", "mini"; None for others
    dtype: str
    num_files: int
    file_bytes: int
    encoder_form: str  # "fused" or "multi-branch"
    encoder_depths: tuple[int, ...]
    encoder_widths: tuple[int, ...]
    encoder_stride_px: int
    decoder_type: str
    decoder_layers: int
    decoder_width: int
    decoder_heads: int
    decoder_kv_heads: int
    head_dim: int
    context_tokens: int
    vocabulary_rows: int
    is_head_tied: bool
    parameters: Parameters
    images: Images
    license: str
    quantized: Quantized | None = None

    @property
    def kv_bytes_per_token(self) -> dict[str, int]:
        """Memory of one token in the decoder's cache (keys and values of all layers), by number format."""
        numbers = 2 * self.decoder_layers * self.decoder_kv_heads * self.head_dim
        return {"float32": 4 * numbers, "bfloat16": 2 * numbers}

    def as_dict(self) -> dict[str, Any]:
        """All fields and derived numbers, for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "parameters": {**asdict(self.parameters), "total": self.parameters.total},
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
    config = FastVlmConfig.from_dict(folder.config)
    text, vision = config.text_config, config.vision_config
    stages = vision.stages
    return CheckpointFacts(
        path=path,
        layout=folder.layout,
        size=_size_name(config),
        dtype=str(folder.dtype).removeprefix("torch."),
        num_files=len(folder.weights.files),
        file_bytes=sum(file.stat().st_size for file in folder.weights.files),
        encoder_form="fused" if vision.is_inference_form else "multi-branch",
        encoder_depths=tuple(stage.depth for stage in stages),
        encoder_widths=tuple(stage.channels for stage in stages),
        encoder_stride_px=vision.stride_px,
        decoder_type=text.model_type,
        decoder_layers=text.num_hidden_layers,
        decoder_width=text.hidden_size,
        decoder_heads=text.num_attention_heads,
        decoder_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        context_tokens=text.max_position_embeddings,
        vocabulary_rows=folder.shapes[EMBEDDING][0] if EMBEDDING in folder.keys else text.vocab_size,
        is_head_tied=HEAD not in folder.keys,
        parameters=count_parameters(folder.shapes),
        images=_images(folder, config),
        license=license_note(path, _size_name(config)),
        quantized=_quantized(folder),
    )


def _quantized(folder: CheckpointFolder) -> Quantized | None:
    found = folder.weights.quantized
    if found is None:
        return None
    options = found.options
    return Quantized(options.bits, options.group_size, options.head_bits, found.error.mean, found.num_bytes)


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


def _size_name(config: FastVlmConfig) -> str | None:
    """The published size whose encoder and decoder have these widths and depths."""
    for name in PRESETS:
        preset = FastVlmConfig.preset(name)
        if _shape_of(preset) == _shape_of(config):
            return name
    return None


def _shape_of(config: FastVlmConfig) -> tuple[Any, ...]:
    text, stages = config.text_config, config.vision_config.stages
    return (
        (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size),
        tuple((stage.depth, stage.channels) for stage in stages),
    )


def _images(folder: CheckpointFolder, config: FastVlmConfig) -> Images:
    if folder.layout == "llava_qwen2":
        stated = apple_images(folder.raw_config)
        height_px = width_px = stated.size_px
        fit = stated.fit
    elif (folder.path / "preprocessor_config.json").is_file():
        processor = FastVlmImageProcessor.from_pretrained(folder.path)
        (height_px, width_px), fit = processor.image_size, processor.image_fit
    else:
        height_px = width_px = math.isqrt(config.image_seq_length) * config.vision_config.stride_px
        fit = "pad"
    return Images(height_px, width_px, fit, config.num_visual_tokens(height_px, width_px))


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
