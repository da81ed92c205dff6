"""Converts Apple's flat ``config.json`` (``llava_qwen2``) to the nested ``fast_vlm`` configuration and back.

Source: apple/ml-fastvlm at 592b4ad, ``llava/model/language_model/llava_qwen.py`` and
``llava/model/multimodal_encoder/mobileclip_encoder.py``; the published 0.5B and 7B files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvlm.errors import CheckpointError

_PLACEHOLDER_ID = 151646  # the first id after Qwen2's own tokens: a row that the table has and no text uses
_LARGEST_ID = 1 << 22
_STOP_IDS = [151645, 151643]  # `<|im_end|>`, `<|endoftext|>`
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT_KEYS = (
    *_REQUIRED,
    "vocab_size",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
)
# What every published file says and no code of the VLM decides anything by.
_APPLE_CONSTANTS = {
    "architectures": ["LlavaQwen2ForCausalLM"],
    "model_type": "llava_qwen2",
    "freeze_mm_mlp_adapter": False,
    "image_grid_pinpoints": None,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "tokenizer_model_max_length": 8192,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": True,
    "use_mm_proj": True,
}


@dataclass(frozen=True)
class AppleImages:
    """Image settings of an Apple checkpoint: side in pixels, and how an image is fitted to it."""

    size_px: int
    fit: str


def apple_images(config: Mapping[str, Any]) -> AppleImages:
    """Side and fit of the images, from ``mm_vision_tower`` (the number after its last ``_``) and the aspect mode.

    Raises:
        CheckpointError: another tower than ``mobileclip_l_<pixels>``, or an aspect mode that cuts into tiles.
    """
    tower, aspect = config.get("mm_vision_tower"), config.get("image_aspect_ratio", "pad")
    found = re.fullmatch(r"mobileclip_l_([0-9]{1,6})", str(tower).rsplit("/", 1)[-1])
    if found is None or int(found[1]) == 0:
        raise CheckpointError(
            f"config.json has mm_vision_tower {tower!r}; FastVLM's encoder is 'mobileclip_l_<pixels>'. This is another "
            "LLaVA model, which fastvlm does not read."
        )
    if aspect == "anyres":
        raise CheckpointError(
            "config.json has image_aspect_ratio 'anyres' (images cut into tiles); no published FastVLM uses it and "
            "fastvlm does not either. Expected 'pad'."
        )
    return AppleImages(int(found[1]), "pad" if aspect == "pad" else "crop")


def from_apple_config(
    config: Mapping[str, Any],
    *,
    model_args: Mapping[str, Any] | None = None,
    num_rows: int | None = None,
    is_tied: bool | None = None,
) -> dict[str, Any]:
    """The ``fast_vlm`` config dictionary of Apple's config.

    Args:
        config: content of Apple's config.json.
        model_args: the encoder's arguments, derived from its tensors; None for the published encoder.
        num_rows: rows of the embedding table; None to use the config's number.
        is_tied: whether the head is the embedding table; None to use the config's flag.

    Raises:
        CheckpointError: a key without which the decoder cannot be built, another projector, another encoder.
    """
    if lacking := [key for key in _REQUIRED if key not in config]:
        raise CheckpointError(f"config.json lacks {', '.join(lacking)}; it is not a complete llava_qwen2 config.")
    if config.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu":
        raise CheckpointError(
            f"config.json has mm_projector_type {config['mm_projector_type']!r}; FastVLM's projector is 'mlp2x_gelu'."
        )
    images = apple_images(config)
    is_tied = bool(config.get("tie_word_embeddings", False)) if is_tied is None else is_tied
    placeholder = placeholder_id(config)
    text = {key: config[key] for key in _TEXT_KEYS if key in config}
    text |= {"model_type": "qwen2", "tie_word_embeddings": is_tied, "rope_parameters": _rope(config)}
    text |= _stop_ids(config, placeholder)
    if num_rows is not None:
        text["vocab_size"] = num_rows
    output = {
        "model_type": "fast_vlm",
        "architectures": ["FastVlmForConditionalGeneration"],
        "image_token_index": placeholder,
        "image_seq_length": math.ceil(images.size_px / 64) ** 2,
        "text_config": text,
        "vision_config": {"model_type": "timm_wrapper", "model_args": dict(model_args or {})},
        "tie_word_embeddings": is_tied,
    }
    if dtype := config.get("dtype", config.get("torch_dtype")):
        output["dtype"] = dtype
    return output


def placeholder_id(config: Mapping[str, Any]) -> int:
    """Id of the ``<image>`` placeholder: what Apple's exporter wrote, else the first id after Qwen2's own tokens.

    Raises:
        CheckpointError: an id beyond every vocabulary, for which rows would be added.
    """
    given = config.get("image_token_index")
    if type(given) is int and given > _LARGEST_ID:
        raise CheckpointError(
            f"config.json has image_token_index {given}; no vocabulary has more than {_LARGEST_ID} rows."
        )
    return given if type(given) is int and given >= 0 else _PLACEHOLDER_ID  # -200 marks text, not an id


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_type": "default", "rope_theta": config.get("rope_theta", 1_000_000.0), **scaling}


def _stop_ids(config: Mapping[str, Any], placeholder: int) -> dict[str, Any]:
    """End and padding ids: Qwen2's where the vocabulary is Qwen2's, else what the config says."""
    if placeholder >= _PLACEHOLDER_ID:
        return {"eos_token_id": _STOP_IDS, "pad_token_id": _STOP_IDS[-1]}
    return {"eos_token_id": config.get("eos_token_id"), "pad_token_id": config.get("pad_token_id")}


def to_apple_config(config: Mapping[str, Any], *, size_px: int, fit: str) -> dict[str, Any]:
    """Apple's flat config dictionary of a ``fast_vlm`` one (``FastVlmConfig.to_dict()``).

    Args:
        config: the nested dictionary.
        size_px, fit: side of the images and how they are fitted to it ("pad" or another value).

    Raises:
        CheckpointError: a model that Apple's layout cannot express.
    """
    text = config["text_config"]
    if text.get("model_type") != "qwen2":
        raise CheckpointError(
            f"The decoder is a {text.get('model_type')!r}; Apple's llava_qwen2 layout holds only 'qwen2'."
        )
    arguments = config["vision_config"].get("model_args") or {}
    if not arguments.get("lkc_use_act", True) or not config.get("multimodal_projector_bias", True):
        raise CheckpointError(
            "The encoder has lkc_use_act false, or the projector no biases; Apple's layout has no place to say so."
        )
    rope = dict(text.get("rope_parameters") or {})
    output = _APPLE_CONSTANTS | {key: text[key] for key in _TEXT_KEYS if key in text}
    output |= {
        "eos_token_id": text["eos_token_id"][0] if isinstance(text["eos_token_id"], list) else text["eos_token_id"],
        "image_aspect_ratio": "pad" if fit == "pad" else "square",
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_vision_tower": f"mobileclip_l_{size_px}",
        "rope_theta": rope.pop("rope_theta", 1_000_000.0),
        "tie_word_embeddings": config["tie_word_embeddings"],
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
    }
    if rope.get("rope_type", "default") != "default":
        output["rope_scaling"] = rope
    if config["image_token_index"] != _PLACEHOLDER_ID:  # Apple's own exporter writes it under the same name
        output |= {"image_token_index": config["image_token_index"], "pad_token_id": text.get("pad_token_id")}
    return output


def apple_image_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`image_size` and `image_fit` of Apple's ``config.json`` if there are no processor files; else empty."""
    if config.get("model_type") != "llava_qwen2":
        return {}
    images = apple_images(config)
    return {"image_size": images.size_px, "image_fit": images.fit}
