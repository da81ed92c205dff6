"""Opens a folder as a :class:`Checkpoint` without transformers, whose import takes longer than everything else.

Every published layout is supported: ``fast_vlm``, Apple's ``llava_qwen2``, and the output of ``fastvlm quantize``.
Unusual checkpoints raise :class:`UnusualCheckpointError`, and :mod:`fastvlm.opening` then uses transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.config import ModelConfig, read_config
from fastvlm.config_limits import dtype_name
from fastvlm.errors import CheckpointError, UnusualCheckpointError
from fastvlm.formats.apple_config import apple_image_settings
from fastvlm.formats.checkpoint import Checkpoint, LazyTensors, RotaryPositions
from fastvlm.formats.differences import Differences
from fastvlm.formats.folder import CheckpointFolder, inspect_folder
from fastvlm.formats.json_files import check_text_files, read_json, read_text
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.names import DECODER, EMBEDDING, ENCODER, FINAL_NORM, HEAD, PROJECTOR
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor
from fastvlm.processing.stored import stored_settings
from fastvlm.processing.tokenizer import Tokenizer, open_tokenizer

_DTYPES = {torch.bfloat16, torch.float16, torch.float32}
_UNUSUAL_FILES = (
    "adapter_config.json",
    "additional_chat_templates",
    "audio_tokenizer_config.json",
    "chat_template.json",
)
_UNUSUAL_PROCESSOR_KEYS = ("audio_tokenizer", "image_processor")


def open_folder(folder: Path, tokenizer: Callable[[], Tokenizer] | None = None) -> Checkpoint:
    """Open the checkpoint in `folder`; the folder is not modified, and weights are read when they are used.

    Args:
        folder: in any published layout.
        tokenizer: returns the folder's tokenizer, if another thread is already reading it.

    Raises:
        UnusualCheckpointError: only transformers can open this checkpoint or explain its error.
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
    _check_decoder(found, config)
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
        rounded={} if quantized is None else {linear.names: linear.weight for linear in quantized.linears},
        bits=None if quantized is None else quantized.options.bits,
        files=MappedFiles(found.weights.files),
    )


def _check_decoder(found: CheckpointFolder, config: ModelConfig) -> None:
    """Raise unless all tensors but the encoder's, which its builder checks, have the names and shapes of `config`."""
    shapes = {name: shape for name, shape in found.shapes.items() if not name.startswith(ENCODER)}
    if differences := Differences.between(decoder_shapes(config), shapes):
        raise CheckpointError(differences.report(str(found.path)))


def decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of projector, decoder and head; a tied head has none."""
    text, has_bias = config.text_config, config.multimodal_projector_bias
    width, inner = text.hidden_size, text.intermediate_size
    q_width, kv_width = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, *, has_bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)

    linear(f"{PROJECTOR}linear_1", width, config.vision_config.hidden_size, has_bias=has_bias)
    linear(f"{PROJECTOR}linear_2", width, width, has_bias=has_bias)
    for index in range(text.num_hidden_layers):
        layer = f"{DECODER}layers.{index}."
        for name, rows in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            linear(f"{layer}self_attn.{name}_proj", rows, width, has_bias=True)
        linear(f"{layer}self_attn.o_proj", width, q_width)
        linear(f"{layer}mlp.gate_proj", inner, width)
        linear(f"{layer}mlp.up_proj", inner, width)
        linear(f"{layer}mlp.down_proj", width, inner)
        shapes |= {f"{layer}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {EMBEDDING: (text.vocab_size, width), FINAL_NORM: (width,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (text.vocab_size, width)
    return shapes


def _dtype(found: CheckpointFolder) -> torch.dtype:
    """The one floating dtype of all tensors, which config.json must not contradict."""
    floating = {entry.dtype for entry in found.weights.entries.values() if entry.dtype.is_floating_point}
    stated = found.config.get("dtype", found.config.get("torch_dtype"))
    if len(floating) != 1 or not floating <= _DTYPES or stated not in (None, *map(dtype_name, floating)):
        dtypes = ", ".join(sorted(map(dtype_name, floating)))
        raise UnusualCheckpointError(f"{found.path} has tensors of {dtypes}, and config.json says {stated}.")
    return floating.pop()


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
    if found.layout != "fast_vlm" or not file.is_file():
        return frozenset()
    stored = read_json(file)
    ends: Any = stored.get("eos_token_id") if isinstance(stored, dict) else "?"
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(token) is int for token in ids):
        raise UnusualCheckpointError(f"{file} has the end tokens {str(ends)[:80]!r}.")
    return frozenset(ids)


def _processor_settings(folder: Path) -> dict[str, Any]:
    """processor_config.json with the chat template of its own file, merged as transformers does."""
    file, template = folder / "processor_config.json", folder / "chat_template.jinja"
    stored = read_json(file) if file.is_file() else {}
    if not isinstance(stored, dict):
        raise UnusualCheckpointError(f"{file} is not a JSON object.")
    for key in _UNUSUAL_PROCESSOR_KEYS:
        if key in stored:
            raise UnusualCheckpointError(f"{file} has the key {key!r}.")
    if stored.get("chat_template") is None and template.is_file():
        stored["chat_template"] = read_text(template)
    return stored


def _image_processor(found: CheckpointFolder, settings: dict[str, Any]) -> ImageProcessor:
    given = {key: settings[key] for key in ("patch_size",) if settings.get(key) is not None}
    if found.layout == "llava_qwen2":
        return ImageProcessor(**apple_image_settings(found.raw_config), **given)
    file = found.path / "preprocessor_config.json"
    stored = read_json(file) if file.is_file() else None
    if not isinstance(stored, dict):
        raise UnusualCheckpointError(f"{found.path} has no preprocessor_config.json.")
    processor: ImageProcessor = ImageProcessor.from_dict(stored, **given)
    return processor
