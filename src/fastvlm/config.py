"""The configuration of a whole FastVLM: plain records, read from the dictionary of a ``fast_vlm`` ``config.json``.

Importing transformers' own configurations takes a second. :func:`read_config` reads what published checkpoints say; for
anything else it raises :class:`UnusualCheckpointError`, and :class:`fastvlm.FastVlmConfig` reads it or says what is
wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastvlm.config_limits import LONGEST_IMAGE, check_decoder_numbers, check_dtype, check_number
from fastvlm.encoder_config import BASE_KEYS, CARRIED_KEYS, CARRIED_VISION_KEYS, EncoderConfig, num_visual_tokens
from fastvlm.errors import ConfigError, UnusualCheckpointError

Bits = Literal[16, 8, 4]  # of a decoder's weights; 16 for what the checkpoint has
BITS: tuple[Bits, ...] = (16, 8, 4)
EncoderBits = Literal[16, 8]  # of the image encoder's weights; 16 for what the checkpoint has
ENCODER_BITS: tuple[EncoderBits, ...] = (16, 8)
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
    - {"bos_token_id", "eos_token_id", "pad_token_id"}  # only the decoder's are read
    | {"image_token_index", "image_seq_length", "projector_hidden_act", "multimodal_projector_bias", "text_config"}
    | {"vision_config", "vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings"}
)
_ENCODER_KEYS = (
    _BASE_FIELDS
    | CARRIED_VISION_KEYS
    | {"architecture", "do_pooling", "global_pool", "hidden_size", "initializer_range", "model_args", "model_type"}
)
_WHOLE_VALUES = {
    "projector_hidden_act": ("gelu",),
    "vision_feature_select_strategy": ("full",),
    "vision_feature_layer": (-1,),
    "multimodal_projector_bias": (True, False),
    "tie_word_embeddings": (False, True),
}
_ENCODER_VALUES = {"model_type": ("timm_wrapper",), "architecture": ("fastvit_mci3",)}


class DerivedNumbers:
    """What follows from a whole model's configuration; shared with :class:`fastvlm.FastVlmConfig`."""

    text_config: Any
    vision_config: Any
    image_token_index: int
    projector_hidden_act: str
    multimodal_projector_bias: bool

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
class DecoderConfig:
    """A plain Qwen2 decoder: full attention in every layer. The names are transformers'."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    eos_token_id: int | list[int] | None
    pad_token_id: int | None

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Key/value cache that one token takes, all layers: 12,288 bytes for the 0.5B in bfloat16 (2 bytes each)."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value


@dataclass(frozen=True)
class ModelConfig(DerivedNumbers):
    """A whole FastVLM; :class:`fastvlm.FastVlmConfig` explains the fields."""

    text_config: DecoderConfig
    vision_config: EncoderConfig
    image_token_index: int
    image_seq_length: int = 256
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False


def read_config(stored: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a ``fast_vlm`` dictionary.

    Raises:
        UnusualCheckpointError: it says anything that published checkpoints do not say.
    """
    text, vision = stored.get("text_config"), stored.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise _unusual("text_config or vision_config", None)
    _check_limits(stored, text, vision)
    _check_keys("config.json", stored, _WHOLE_KEYS)
    _check_values("", stored, _WHOLE_VALUES)
    decoder, encoder = _decoder(text), _encoder(vision)
    if "image_token_index" in stored and "image_token_id" in stored:
        raise _unusual("image_token_index", "given twice")
    index = stored.get("image_token_index", stored.get("image_token_id", IMAGE_TOKEN_INDEX))
    if not _is_int(index) or not 0 <= index < decoder.vocab_size:
        raise _unusual("image_token_index", index)
    return ModelConfig(
        text_config=decoder,
        vision_config=encoder,
        image_token_index=index,
        image_seq_length=stored.get("image_seq_length", 256),
        multimodal_projector_bias=stored.get("multimodal_projector_bias", True),
        tie_word_embeddings=any(part.get("tie_word_embeddings", False) for part in (stored, text)),
    )


def _unusual(name: str, value: Any) -> UnusualCheckpointError:
    return UnusualCheckpointError(f"{name} is {str(value)[:80]!r}, which published checkpoints do not have.")


def _check_limits(stored: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise unless numbers and dtypes are ones that a FastVLM can have."""
    try:
        for part in (stored, text, vision):
            check_dtype("", part.get("dtype"))
            check_dtype("", part.get("torch_dtype"))
        check_decoder_numbers(text)
        check_number("", "image_seq_length", stored.get("image_seq_length", 256), 1, LONGEST_IMAGE)
        check_number("", "initializer_range", vision.get("initializer_range", 0.02), 0, 100, (int, float))
    except ConfigError as error:
        raise UnusualCheckpointError(str(error)) from error


def _check_keys(where: str, stored: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    if unknown := sorted({key for key in stored if not key.startswith("_")} - known):
        raise _unusual(where, f"with the key {unknown[0]}")


def _check_values(where: str, stored: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise unless each value is one of those `allowed`, of the same type; the first is the default."""
    for name, values in allowed.items():
        value = stored.get(name, values[0])
        if not any(type(value) is type(known) and value == known for known in values):
            raise _unusual(f"{where}{name}", value)


def _encoder(stored: Mapping[str, Any]) -> EncoderConfig:
    _check_keys("vision_config", stored, _ENCODER_KEYS)
    _check_values("vision_config.", stored, _ENCODER_VALUES)
    try:
        return EncoderConfig(stored.get("hidden_size"), stored.get("model_args"))
    except ConfigError as error:
        raise UnusualCheckpointError(str(error)) from error


def _decoder(stored: Mapping[str, Any]) -> DecoderConfig:
    sizes: dict[str, Any] = {name: stored.get(name) for name in _DECODER_SIZES}
    for name, size in sizes.items():
        if not _is_int(size) or size <= 0:
            raise _unusual(f"text_config.{name}", size)
    _check_attention(stored, sizes)
    epsilon, eos, pad = stored.get("rms_norm_eps"), stored.get("eos_token_id"), stored.get("pad_token_id")
    if not isinstance(epsilon, float):
        raise _unusual("text_config.rms_norm_eps", epsilon)
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(_is_int(token) for token in [*ends, 0 if pad is None else pad]):
        raise _unusual("text_config's end tokens", [eos, pad])
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    theta = _rope_theta(stored)
    return DecoderConfig(
        **sizes, head_dim=head_dim, rms_norm_eps=epsilon, rope_theta=theta, eos_token_id=eos, pad_token_id=pad
    )


def _check_attention(stored: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Raise unless this is Qwen2's attention over all tokens, in heads of the usual width."""
    heads, layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]
    width = sizes["hidden_size"] // heads
    allowed = {
        "model_type": ("qwen2",),
        "hidden_act": ("silu",),
        "use_sliding_window": (False, None),
        "layer_types": (None, [], ["full_attention"] * layers),
        "head_dim": (None, width),
        "quantization_config": (None,),
        "tie_word_embeddings": (False, True),
    }
    _check_values("text_config.", stored, allowed)
    if heads % sizes["num_key_value_heads"]:
        raise _unusual("text_config.num_key_value_heads", sizes["num_key_value_heads"])


def _rope_theta(stored: Mapping[str, Any]) -> float:
    """The base of default rotary positions, under its present name or that of older files."""
    positions = stored.get("rope_parameters")
    if positions is None:
        positions = {"rope_type": "default", "rope_theta": stored.get("rope_theta")}
        positions = {} if stored.get("rope_scaling") is not None else positions
    elif "rope_theta" in stored or "rope_scaling" in stored:
        raise _unusual("text_config.rope_parameters", "given twice")
    if not isinstance(positions, Mapping) or set(positions) != {"rope_type", "rope_theta"}:
        raise _unusual("text_config.rope_parameters", positions)
    theta = positions["rope_theta"]
    if positions["rope_type"] != "default" or not (isinstance(theta, float) or _is_int(theta)):
        raise _unusual("text_config.rope_parameters", positions)
    return float(theta)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
