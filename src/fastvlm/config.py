"""A whole FastVLM's configuration without transformers: what an engine reads of it, and nothing of the rest.

Importing transformers' own configurations takes a second. A ``config.json`` that says anything out of the ordinary is
not for this file: :func:`light_config` gives None, and :class:`fastvlm.FastVlmConfig` reads it and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvlm.config_limits import LONGEST_IMAGE, check_decoder_numbers, check_dtype, check_number
from fastvlm.encoder_config import BASE_KEYS, CARRIED_KEYS, CARRIED_VISION_KEYS, EncoderShape, num_visual_tokens
from fastvlm.errors import ConfigError

__all__ = ["IMAGE_TOKEN_INDEX", "LightConfig", "LightDecoderConfig", "LightEncoderConfig", "WholeShape", "light_config"]

IMAGE_TOKEN_INDEX = 151646  # `<image>`: the first id after Qwen2's own special tokens
QWEN2_STOP_TOKEN_IDS = (151645, 151643)  # `<|im_end|>`, `<|endoftext|>`

_DECODER_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_BASE_FIELDS = frozenset(  # of transformers' base class, for other models
    {
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
    }
)
_WHOLE_KEYS = (
    _BASE_FIELDS
    | (BASE_KEYS | CARRIED_KEYS)
    - {"quantization_config", "attn_implementation", "experts_implementation", "per_layer_config"}
    - {"bos_token_id", "eos_token_id", "pad_token_id"}  # the decoder's count, and where else they stand is not plain
    | {"image_token_index", "image_seq_length", "projector_hidden_act", "multimodal_projector_bias", "text_config"}
    | {"vision_config", "vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings"}
)
_ENCODER_KEYS = (
    _BASE_FIELDS
    | CARRIED_VISION_KEYS
    | {"architecture", "do_pooling", "global_pool", "hidden_size", "initializer_range", "model_args", "model_type"}
)


class WholeShape:
    """What follows from a whole model's configuration, whoever has read it."""

    text_config: Any
    vision_config: Any
    image_token_index: int

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end every reply: the decoder's own eos and pad, and Qwen2's two where the vocabulary is Qwen2's."""
        own = self.text_config.eos_token_id
        ids = list(own) if isinstance(own, (list, tuple)) else [own]
        ids.append(self.text_config.pad_token_id)
        if self.image_token_index >= IMAGE_TOKEN_INDEX:
            ids.extend(QWEN2_STOP_TOKEN_IDS)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def num_visual_tokens(self, height_px: int, width_px: int) -> int:
        """Visual tokens of one image of this size with this encoder (see :func:`num_visual_tokens`)."""
        return num_visual_tokens(height_px, width_px, self.vision_config.stride_px)


@dataclass(frozen=True)
class LightDecoderConfig:
    """A plain Qwen2: full attention in every layer, default positions; the names are transformers'."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    model_type: str = "qwen2"
    hidden_act: str = "silu"

    @property
    def layer_types(self) -> list[str]:
        """Of every layer."""
        return ["full_attention"] * self.num_hidden_layers

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """As transformers keeps them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta}


class LightEncoderConfig(EncoderShape):
    """The encoder's; see :class:`EncoderShape`."""

    architecture = "fastvit_mci3"

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.settle(stored.get("hidden_size"), stored.get("model_args"), {})


@dataclass(frozen=True)
class LightConfig(WholeShape):
    """What an engine reads of a whole model's configuration; see :class:`fastvlm.FastVlmConfig`."""

    text_config: LightDecoderConfig
    vision_config: LightEncoderConfig
    image_token_index: int
    image_seq_length: int
    projector_hidden_act: str
    multimodal_projector_bias: bool
    tie_word_embeddings: bool


def light_config(stored: Mapping[str, Any]) -> LightConfig | None:
    """The configuration that a ``fast_vlm`` dictionary gives, or None for one that is not plain."""
    if not _is_within_limits(stored):
        return None
    decoder, encoder = _decoder(stored.get("text_config")), _encoder(stored.get("vision_config"))
    if decoder is None or encoder is None or not _is_plain(stored):
        return None
    index = stored.get("image_token_index", stored.get("image_token_id", IMAGE_TOKEN_INDEX))
    tied = [part.get("tie_word_embeddings", False) for part in (stored, stored["text_config"])]
    if not _is_int(index) or not 0 <= index < decoder.vocab_size or not all(isinstance(flag, bool) for flag in tied):
        return None
    return LightConfig(
        text_config=decoder,
        vision_config=encoder,
        image_token_index=index,
        image_seq_length=stored.get("image_seq_length", 256),
        projector_hidden_act="gelu",
        multimodal_projector_bias=stored.get("multimodal_projector_bias", True),
        tie_word_embeddings=any(tied),
    )


def _is_within_limits(stored: Mapping[str, Any]) -> bool:
    """Whether the numbers and dtypes are ones that a FastVLM can have."""
    text, vision = stored.get("text_config"), stored.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return False
    try:
        for part in (stored, text, vision):
            check_dtype("", part.get("dtype"))
            check_dtype("", part.get("torch_dtype"))
        check_decoder_numbers(text)
        check_number("", "image_seq_length", stored.get("image_seq_length", 256), 1, LONGEST_IMAGE)
        check_number("", "initializer_range", vision.get("initializer_range", 0.02), 0, 100, (int, float))
    except ConfigError:
        return False
    return True


def _is_plain(stored: Mapping[str, Any]) -> bool:
    """Whether what is not looked at further has the only value that it may have."""
    return (
        {key for key in stored if not key.startswith("_")} <= _WHOLE_KEYS
        and ("image_token_index" in stored) + ("image_token_id" in stored) < 2
        and stored.get("projector_hidden_act", "gelu") == "gelu"
        and stored.get("vision_feature_select_strategy", "full") == "full"
        and _is_int(stored.get("vision_feature_layer", -1))
        and stored.get("vision_feature_layer", -1) == -1
        and isinstance(stored.get("multimodal_projector_bias", True), bool)
        and _is_int(stored.get("image_seq_length", 256))
    )


def _encoder(stored: Any) -> LightEncoderConfig | None:
    if not isinstance(stored, Mapping) or not {key for key in stored if not key.startswith("_")} <= _ENCODER_KEYS:
        return None
    if stored.get("model_type", "timm_wrapper") != "timm_wrapper" or stored.get("architecture", "fastvit_mci3") != (
        "fastvit_mci3"
    ):
        return None
    try:
        return LightEncoderConfig(stored)
    except ConfigError:
        return None


def _decoder(stored: Any) -> LightDecoderConfig | None:
    if not isinstance(stored, Mapping) or stored.get("model_type", "qwen2") != "qwen2":
        return None
    sizes: dict[str, Any] = {name: stored.get(name) for name in _DECODER_SIZES}
    epsilon, theta = stored.get("rms_norm_eps"), _rope_theta(stored)
    eos, pad = stored.get("eos_token_id"), stored.get("pad_token_id")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if (
        not all(_is_int(size) and size > 0 for size in sizes.values())
        or not isinstance(epsilon, float)
        or theta is None
        or not all(_is_int(token) for token in [*eos_ids, 0 if pad is None else pad])
        or not _has_full_attention(stored, sizes)
    ):
        return None
    return LightDecoderConfig(**sizes, rms_norm_eps=epsilon, rope_theta=theta, eos_token_id=eos, pad_token_id=pad)


def _has_full_attention(stored: Mapping[str, Any], sizes: Mapping[str, Any]) -> bool:
    """Whether attention is Qwen2's own, over all tokens, in heads of the usual width."""
    heads = sizes["num_attention_heads"]
    width = sizes["hidden_size"] // heads
    return (
        stored.get("hidden_act", "silu") == "silu"
        and not stored.get("use_sliding_window", False)
        and stored.get("layer_types") in (None, [], ["full_attention"] * sizes["num_hidden_layers"])
        and stored.get("head_dim", width) in (None, width)
        and heads % sizes["num_key_value_heads"] == 0
        and "quantization_config" not in stored
    )


def _rope_theta(stored: Mapping[str, Any]) -> float | None:
    """The base of default positions, in today's words or in those of older files; None for other positions."""
    positions = stored.get("rope_parameters")
    if positions is None:
        positions = {"rope_type": "default", "rope_theta": stored.get("rope_theta")}
        positions = {} if stored.get("rope_scaling") is not None else positions
    elif "rope_theta" in stored or "rope_scaling" in stored:
        return None
    if not isinstance(positions, Mapping) or set(positions) != {"rope_type", "rope_theta"}:
        return None
    theta = positions["rope_theta"]
    is_number = isinstance(theta, float) or _is_int(theta)
    return theta if positions["rope_type"] == "default" and is_number else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
