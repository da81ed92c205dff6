"""Inspects a checkpoint folder without loading tensors: layout, configuration, and each key's canonical name.

Where configuration and tensors disagree, the tensors win: rows of the vocabulary, form of the encoder, and whether the
head is tied to the embedding table.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvlm.config_limits import without_code_choices
from fastvlm.errors import CheckpointError
from fastvlm.formats.apple_config import from_apple_config, placeholder_id
from fastvlm.formats.compressed_tensors import is_compressed
from fastvlm.formats.encoder import encoder_arguments, encoder_form
from fastvlm.formats.json_files import read_json
from fastvlm.formats.names import (
    EMBEDDING,
    ENCODER,
    HEAD,
    LAYOUTS,
    Layout,
    is_apple,
    names_from_apple,
    names_from_fast_vlm,
)
from fastvlm.formats.weight_sets import some_of
from fastvlm.formats.weights import WeightFiles

_ROW_MULTIPLE = 64  # tables are padded to a multiple of this, as transformers' conversion does
_COMPARED_ROWS = 8192  # rows of head and table that are held in memory at once when they are compared
_PARTS = ("text_config", "vision_config", "quantization_config", "rope_parameters", "rope_scaling")
_BARE_EMBEDDING = "language_model.embed_tokens.weight"  # of FastVlmModel.save_pretrained, which has no head


@dataclass(frozen=True)
class CheckpointFolder:
    """Content of a checkpoint folder.

    Args:
        path: the folder.
        layout: "fast_vlm" or "llava_qwen2" (Apple's).
        raw_config: content of its config.json.
        config: the same as a ``fast_vlm`` config dictionary, corrected by what the tensors say.
        weights: its weight files, by the names in the files.
        keys: canonical name -> name in the files; without what the VLM does not use, and without a tied head.
        dropped: names in the files of tensors that the VLM does not use (Apple's CLIP head).
        added_rows: rows of zeros to append to embedding table and head, so that the placeholder has a row.
        has_stored_head: True if the files have a head, tied or not.
    """

    path: Path
    layout: Layout
    raw_config: dict[str, Any]
    config: dict[str, Any]
    weights: WeightFiles
    keys: dict[str, str]
    dropped: tuple[str, ...]
    added_rows: int
    has_stored_head: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape, the added rows included."""
        shapes = {name: self.weights.entries[key].shape for name, key in self.keys.items()}
        for name in (EMBEDDING, HEAD) if self.added_rows else ():
            if name in shapes:
                rows, *rest = shapes[name]
                shapes[name] = (rows + self.added_rows, *rest)
        return shapes

    @property
    def dtype(self) -> torch.dtype:
        """The decoder's dtype: that of the embedding table, else of the first floating tensor."""
        entries = self.weights.entries
        floating = [e.dtype for e in entries.values() if e.dtype.is_floating_point]
        return entries[self.keys[EMBEDDING]].dtype if EMBEDDING in self.keys else (floating or [torch.float32])[0]

    def tensor(self, key: str) -> torch.Tensor:
        """The tensor of canonical name `key`, with the added rows."""
        return self._pad(key, self.weights.tensor(self.keys[key]))

    def lazy(self, key: str) -> Any:
        """As :meth:`tensor`, read only when indexed with ``[...]``, unless rows are added."""
        if self.added_rows and key in (EMBEDDING, HEAD):
            return self.tensor(key)
        return self.weights.lazy(self.keys[key])

    def _pad(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        if not self.added_rows or key not in (EMBEDDING, HEAD):
            return tensor
        # Zeros, not random rows: the placeholder's row is never looked up, and no token has the others' ids.
        return torch.cat([tensor, tensor.new_zeros(self.added_rows, tensor.shape[1])])


def inspect_folder(path: Path) -> CheckpointFolder:
    """Read configuration and headers of a checkpoint folder; no tensor is loaded.

    Raises:
        CheckpointError: not a complete FastVLM checkpoint; the message says what is wrong and what to do.
    """
    raw = _read_config(path)
    layout = _layout(path, raw)
    weights = WeightFiles.of(path)
    if weights.quantized is not None and is_compressed(raw):
        raw = {key: value for key, value in raw.items() if key != "quantization_config"}  # read here, by nobody else
    _check_layout(path, layout, weights)
    named = names_from_apple(weights.entries) if layout == "llava_qwen2" else names_from_fast_vlm(weights.entries)
    keys = {name: key for key, name in named.items() if name is not None}
    shapes = {name: weights.entries[key].shape for name, key in keys.items()}
    if encoder_form(shapes) is None:
        raise CheckpointError(_no_encoder(path, raw))
    is_tied = None if _BARE_EMBEDDING in weights.entries else _is_tied(path, raw, weights, keys)
    has_stored_head = HEAD in keys
    if is_tied:
        keys.pop(HEAD, None)  # a copy of the embedding table
    added_rows = _added_rows(raw, shapes) if layout == "llava_qwen2" else 0
    return CheckpointFolder(
        path=path,
        layout=layout,
        raw_config=raw,
        config=_config(layout, raw, shapes, is_tied, added_rows),
        weights=weights,
        keys=keys,
        dropped=tuple(key for key, name in named.items() if name is None),
        added_rows=added_rows,
        has_stored_head=has_stored_head,
    )


def config_of_folder(path: Path) -> dict[str, Any]:
    """The ``fast_vlm`` config dictionary of a folder, corrected by its weights if there are any."""
    raw = _read_config(path)
    layout = _layout(path, raw)
    if any(file.suffix in {".safetensors", ".bin"} for file in path.iterdir()) and "quantization_config" not in raw:
        return inspect_folder(path).config
    return _config(layout, raw, {}, None, 0)


def _config(
    layout: Layout, raw: dict[str, Any], shapes: dict[str, tuple[int, ...]], is_tied: bool | None, added_rows: int
) -> dict[str, Any]:
    if layout == "fast_vlm":
        return _corrected(raw, form=encoder_form(shapes), is_tied=is_tied)
    num_rows = shapes[EMBEDDING][0] + added_rows if EMBEDDING in shapes else None
    return from_apple_config(raw, model_args=encoder_arguments(shapes), num_rows=num_rows, is_tied=is_tied)


def _read_config(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise CheckpointError(f"{path} is a file; expected the folder of a checkpoint, with config.json and weights.")
    if not path.is_dir():
        raise CheckpointError(f"There is no folder {path}.")
    if not any(path.iterdir()):
        raise CheckpointError(f"{path} is empty; expected config.json, weights and tokenizer files.")
    if not (path / "config.json").is_file():
        raise CheckpointError(_no_config(path))
    content = read_json(path / "config.json")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path / 'config.json'} holds {type(content).__name__}; expected an object.")
    _check_parts(path, content)
    kept, ignored = without_code_choices(content)
    if ignored:
        warnings.warn(
            f"{path / 'config.json'} chooses {some_of(ignored)}, which is ignored: which code computes is for the "
            "caller to say (attn_implementation=...).",
            stacklevel=2,
        )
    return kept


def _check_parts(path: Path, content: dict[str, Any]) -> None:
    """Raise unless the nested parts of a configuration are objects or null."""
    vision = content.get("vision_config")
    parts = {name: content.get(name) for name in _PARTS}
    parts["vision_config.model_args"] = vision.get("model_args") if isinstance(vision, dict) else None
    for name, part in parts.items():
        if part is not None and not isinstance(part, dict):
            raise CheckpointError(f"{path / 'config.json'} has {name} {str(part)[:60]!r}; expected an object.")


def _no_config(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        stored = read_json(path / "adapter_config.json")
        base = stored.get("base_model_name_or_path") if isinstance(stored, dict) else None
        return (
            f"{path} is a PEFT adapter (LoRA), not a model: load its base model ({base!r}) and then call "
            "model.load_adapter(folder)."
        )
    names = sorted(p.name for p in path.iterdir())
    if any(name in {"mm_projector.bin", "non_lora_trainables.bin"} for name in names):
        return f"{path} holds a projector or LoRA part of a LLaVA training, not a whole model; merge it with its base."
    inside = [p.name for p in sorted(path.iterdir()) if p.is_dir() and (p / "config.json").is_file()]
    hint = f" Did you mean its folder {inside[0]!r}?" if inside else ""
    return f"{path} has no config.json; found {', '.join(names[:10])}.{hint}"


def _layout(path: Path, raw: dict[str, Any]) -> Layout:
    model_type = raw.get("model_type")
    if "quantization" in raw:
        raise CheckpointError(
            f"{path} is quantized for MLX (config.json has 'quantization'); its tensors are packed. Take the "
            "checkpoint that it was made from."
        )
    if model_type == "llava_qwen2" and "quantization_config" in raw:
        method = (raw["quantization_config"] or {}).get("quant_method")
        raise CheckpointError(
            f"{path} is a quantized llava_qwen2 checkpoint ({method}), which fastvlm does not read. Take the "
            "checkpoint that it was made from and quantize on loading: from_pretrained(..., quantization_config=...)."
        )
    for layout in LAYOUTS:
        if model_type == layout:
            return layout
    raise CheckpointError(
        f"{path / 'config.json'} has model_type {model_type!r}; fastvlm reads 'fast_vlm' and Apple's 'llava_qwen2'."
    )


def _check_layout(path: Path, layout: Layout, weights: WeightFiles) -> None:
    if any(".lora_A." in key for key in weights.entries):
        raise CheckpointError(
            f"{path} holds LoRA matrices and the weights; merge the adapter (peft: merge_and_unload) and save again."
        )
    found: Layout = "llava_qwen2" if is_apple(weights.entries) else "fast_vlm"
    if found != layout:
        raise CheckpointError(
            f"{path / 'config.json'} says model_type {layout!r}, but the tensors are named as in {found!r} "
            f"({next(iter(weights.entries))!r}). Configuration and weights are of different checkpoints."
        )


def _no_encoder(path: Path, raw: dict[str, Any]) -> str:
    said = (
        "; its config.json says unfreeze_mm_vision_tower false" if raw.get("unfreeze_mm_vision_tower") is False else ""
    )
    return (
        f"{path} holds no encoder: no tensor is named {ENCODER}* or model.vision_tower.vision_tower.model.*{said}. An "
        "encoder with random weights would see nothing, so this is an error. Take a checkpoint that includes it."
    )


def _said_tied(raw: dict[str, Any]) -> bool:
    """The tie flag, in either place; transformers omits a flag with the class's default (False here)."""
    text = raw.get("text_config") or {}
    return bool(raw.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False))


def _is_tied(path: Path, raw: dict[str, Any], weights: WeightFiles, keys: dict[str, str]) -> bool:
    """Whether the head is the embedding table according to the tensors; warns if the flag disagrees."""
    said = _said_tied(raw)
    if HEAD not in keys or EMBEDDING not in keys:
        if not said:
            warnings.warn(
                f"{path}: config.json says tie_word_embeddings false, but there is no lm_head.weight. The embedding "
                "table is taken as the head.",
                stacklevel=2,
            )
        return True
    if said and not _are_equal(weights, keys[HEAD], keys[EMBEDDING]):
        warnings.warn(
            f"{path}: config.json says tie_word_embeddings true, but lm_head.weight and the embedding table differ. "
            "Both are kept, untied.",
            stacklevel=2,
        )
        return False
    return said


def _are_equal(weights: WeightFiles, first: str, second: str) -> bool:
    one, two = weights.entries[first], weights.entries[second]
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    a, b = weights.lazy(first), weights.lazy(second)
    starts = range(0, one.shape[0], _COMPARED_ROWS)
    return all(torch.equal(a[i : i + _COMPARED_ROWS], b[i : i + _COMPARED_ROWS]) for i in starts)


def _added_rows(raw: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int:
    """Rows to append so that the placeholder has one: Apple's loader cuts the table off just before it."""
    if EMBEDDING not in shapes:
        return 0
    placeholder = placeholder_id(raw)
    rows = shapes[EMBEDDING][0]
    return 0 if rows > placeholder else math.ceil((placeholder + 1) / _ROW_MULTIPLE) * _ROW_MULTIPLE - rows


def _corrected(raw: dict[str, Any], *, form: bool | None, is_tied: bool | None) -> dict[str, Any]:
    """`raw`, a ``fast_vlm`` config, with the encoder's form and the tie that the tensors have."""
    config = {**raw}
    if form is not None:
        vision = dict(config.get("vision_config") or {})
        vision["model_args"] = {**(vision.get("model_args") or {}), "inference_mode": form}
        config["vision_config"] = vision
    if is_tied is not None:
        config["tie_word_embeddings"] = is_tied
        if config.get("text_config") is not None:
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": is_tied}
    return config
