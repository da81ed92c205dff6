"""transformers configuration of FastVLM, and the published sizes.

The saved format is exactly that of transformers' ``fast_vlm`` (the encoder is a ``timm_wrapper`` entry for timm's
``fastvit_mci3``), so folders can be exchanged in both directions.

Source of decoder sizes and file keys: transformers 5.23 ``models/fast_vlm`` and its conversion script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN

from fastvlm.config import IMAGE_TOKEN_INDEX, DerivedNumbers
from fastvlm.config_limits import LONGEST_IMAGE, check_decoder_numbers, check_dtype, check_number, without_code_choices
from fastvlm.encoder_config import (
    BASE_KEYS,
    CARRIED_KEYS,
    CARRIED_VISION_KEYS,
    PUBLISHED_MODEL_ARGS,
    EncoderConfig,
    check_type,
    refuse_unknown,
)
from fastvlm.errors import ConfigError, FastVlmError
from fastvlm.formats.apple_config import from_apple_config
from fastvlm.formats.folder import config_of_folder


def _qwen2(**sizes: Any) -> dict[str, Any]:
    """Text config of a published decoder: `sizes` on top of what all sizes share."""
    return {
        "model_type": "qwen2",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
        **sizes,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "0.5b": {
        "text_config": _qwen2(
            vocab_size=152000,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_window_layers=24,
            tie_word_embeddings=True,
        ),
    },
    "1.5b": {
        "text_config": _qwen2(
            vocab_size=152000,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_window_layers=28,
            tie_word_embeddings=True,
        ),
    },
    "7b": {
        "text_config": _qwen2(
            vocab_size=152128,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_window_layers=28,
            tie_word_embeddings=False,
        ),
    },
    # The shipped `fastvlm-mini`: the same design, a quarter of the width, 512 px, and a tokenizer of its own.
    "mini": {
        "image_token_index": 4095,
        "image_seq_length": 64,
        "text_config": _qwen2(
            vocab_size=4096,
            hidden_size=320,
            intermediate_size=896,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=1,
            max_window_layers=6,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=4092,
            eos_token_id=4094,
            pad_token_id=4092,
        ),
        "vision_config": {"model_args": {"layers": [2, 4, 8, 3, 2], "embed_dims": [24, 48, 96, 192, 384]}},
    },
}


# Of any decoder; others than Qwen2 may lack some or call them otherwise.
_DECODER_NUMBERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_FIELD_TYPES: dict[str, type] = {
    "image_token_index": int,
    "image_seq_length": int,
    "projector_hidden_act": str,
    "multimodal_projector_bias": bool,
}


class FastViTHDConfig(EncoderConfig, PretrainedConfig):  # type: ignore[misc]  # transformers' class factory is untyped
    """Configuration of the encoder; ``FastViTHDConfig()`` is the published one (122,714,208 parameters).

    The architecture is set by `model_args`, the arguments that timm's ``fastvit_mci3`` takes (`layers`,
    `embed_dims`, `mlp_ratios`, `token_mixers`, `pos_embs`, `downsamples`, `se_downsamples`, `lkc_use_act`,
    `stem_use_scale_branch`, `inference_mode`, ...); each may also be given as a keyword. Entries per stage may be
    more than there are stages, as in timm; the rest is ignored.

    Args:
        architecture: always ``"fastvit_mci3"``.
        do_pooling, global_pool: carried for transformers' timm wrapper; the VLM does not use the pooled vector.
        hidden_size: channels of the feature map, ``embed_dims[-1] * cls_ratio``; derived, and checked when given.
        initializer_range: standard deviation of the truncated normal that fills FFN and attention weights.
        model_args: overrides of the published encoder; unknown names are refused.

    Raises:
        ConfigError: an unknown key, stages of different lengths, a width that the next layer cannot take.
    """

    model_type = "timm_wrapper"
    base_config_key = "vision_config"

    architecture: str = "fastvit_mci3"
    do_pooling: bool = True
    global_pool: str = "avg"
    if TYPE_CHECKING:
        hidden_size: int  # None is replaced by the derived width
    else:
        hidden_size: int | None = None
    initializer_range: float = 0.02
    model_args: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        shorthand = {key: kwargs.pop(key) for key in list(kwargs) if key in PUBLISHED_MODEL_ARGS}
        refuse_unknown("FastViTHDConfig", kwargs, self._known_keys())
        check_dtype("FastViTHDConfig", kwargs.get("torch_dtype", self.dtype))
        check_number("FastViTHDConfig", "initializer_range", self.initializer_range, 0, 100, (int, float))
        self.settle(self.hidden_size, self.model_args, shorthand)
        super().__post_init__(**kwargs)

    @classmethod
    def _known_keys(cls) -> set[str]:
        return (
            set(cls.__dataclass_fields__) | BASE_KEYS | CARRIED_KEYS | CARRIED_VISION_KEYS | set(PUBLISHED_MODEL_ARGS)
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that is written to ``config.json``."""
        output: dict[str, Any] = super().to_dict()
        for key in ("id2label", "label2id"):  # classification labels of the base class: an encoder has none
            output.pop(key, None)
        return output


class FastVlmConfig(DerivedNumbers, PretrainedConfig):  # type: ignore[misc]  # transformers' class factory is untyped
    """Configuration of a whole FastVLM; ``FastVlmConfig()`` is the published 7B.

    Args:
        vision_config: :class:`FastViTHDConfig` or its dictionary; None for the published encoder.
        text_config: the decoder's config (Qwen2 as published; any causal decoder of transformers by its
            `model_type`) or its dictionary, used unchanged; None for the published 7B decoder.
        image_token_index: id of the ``<image>`` placeholder (`image_token_id` is the same).
        image_seq_length: visual tokens an image at the checkpoint's own resolution; informational.
        projector_hidden_act: activation between the projector's two layers.
        vision_feature_select_strategy, vision_feature_layer: only ``"full"`` and ``-1`` exist in FastVLM.
        multimodal_projector_bias: whether the projector's layers have biases.
        tie_word_embeddings: the head is the embedding table; forced on when `text_config` says so.

    Raises:
        ConfigError: unknown keys, an impossible value, a placeholder id outside the vocabulary.
    """

    model_type = "fast_vlm"
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": FastViTHDConfig, "text_config": AutoConfig}

    if TYPE_CHECKING:  # dictionaries and None are replaced by config objects
        vision_config: FastViTHDConfig
        text_config: PretrainedConfig
    else:
        vision_config: dict[str, Any] | PretrainedConfig | None = None
        text_config: dict[str, Any] | PretrainedConfig | None = None
    image_token_index: int = IMAGE_TOKEN_INDEX
    image_seq_length: int = 256
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "full"
    vision_feature_layer: int | list[int] = -1
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "image_token_id" in kwargs:
            self.image_token_index = kwargs.pop("image_token_id")
        refuse_unknown("FastVlmConfig", kwargs, set(type(self).__dataclass_fields__) | BASE_KEYS | CARRIED_KEYS)
        check_dtype("FastVlmConfig", self.dtype)
        check_dtype("FastVlmConfig", kwargs.get("torch_dtype"))
        check_type("FastVlmConfig", "tie_word_embeddings", self.tie_word_embeddings, bool)
        self.vision_config = self._vision(self.vision_config)
        self.text_config = self._text(self.text_config)
        # A file may say "tied" in either place (transformers 5.23 reads it the same way).
        self.tie_word_embeddings = bool(self.tie_word_embeddings or self.text_config.tie_word_embeddings)
        self._check()
        super().__post_init__(**kwargs)

    @staticmethod
    def _vision(value: dict[str, Any] | PretrainedConfig | None) -> FastViTHDConfig:
        if isinstance(value, FastViTHDConfig):
            return value
        check_type("FastVlmConfig", "vision_config", value, (dict, PretrainedConfig, type(None)))
        fields = dict(value.to_dict() if isinstance(value, PretrainedConfig) else value or {})
        model_type = fields.pop("model_type", FastViTHDConfig.model_type)
        if model_type != FastViTHDConfig.model_type:
            raise ConfigError(
                f"vision_config.model_type is {model_type!r}; a FastVLM encoder is stored as "
                f"{FastViTHDConfig.model_type!r} with architecture 'fastvit_mci3'."
            )
        return FastViTHDConfig(**fields)

    @staticmethod
    def _text(value: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
        if isinstance(value, PretrainedConfig):
            return value
        check_type("FastVlmConfig", "text_config", value, (dict, type(None)))
        fields = dict(PRESETS["7b"]["text_config"] if value is None else value)
        model_type = fields.pop("model_type", "qwen2")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise ConfigError(
                f"text_config.model_type is {model_type!r}, which this transformers ({transformers.__version__}) does "
                "not know. Published FastVLM decoders are 'qwen2'."
            )
        check_decoder_numbers(fields)
        check_dtype("text_config", fields.get("dtype", fields.get("torch_dtype")))
        with _as_config_errors("text_config"):
            return AutoConfig.for_model(model_type, **fields)

    def _check(self) -> None:
        for name, kind in _FIELD_TYPES.items():
            check_type("FastVlmConfig", name, getattr(self, name), kind)
        check_number("FastVlmConfig", "image_seq_length", self.image_seq_length, 1, LONGEST_IMAGE)
        if self.projector_hidden_act not in ACT2FN:
            raise ConfigError(
                f"projector_hidden_act is {self.projector_hidden_act!r}, which transformers does not know. "
                "Published checkpoints have 'gelu'."
            )
        check_decoder_numbers({name: getattr(self.text_config, name, None) for name in _DECODER_NUMBERS})
        if self.vision_feature_select_strategy != "full":
            raise ConfigError(
                f"Unexpected select feature strategy: {self.vision_feature_select_strategy}. "
                "Only 'full' is supported in FastVLM."
            )
        if type(self.vision_feature_layer) is not int or self.vision_feature_layer != -1:
            raise ConfigError(
                f"Unexpected vision feature layer: {self.vision_feature_layer}. Only -1 is supported in FastVLM."
            )
        if not 0 <= self.image_token_index < self.text_config.vocab_size:
            raise ConfigError(
                f"image_token_index is {self.image_token_index}, but the vocabulary has "
                f"{self.text_config.vocab_size} rows. Give the id that the tokenizer has for '<image>'."
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> FastVlmConfig:
        """A published size by name: ``"0.5b"``, ``"1.5b"``, ``"7b"``, or ``"mini"``; `overrides` are top-level keys."""
        if name.lower() not in PRESETS:
            raise ConfigError(f"There is no preset {name!r}; known are {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name.lower()], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers', also for Apple's ``llava_qwen2``; where config and tensors differ, the tensors win."""
        path = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        found = config_of_folder(path) if path.is_dir() else None
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if found is None and config.get("model_type") == "llava_qwen2":
            found = from_apple_config(config)
        return found or without_code_choices(config)[0], unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'; raises ConfigError for an invalid dictionary.

        ``AutoConfig`` passes the content of the file, and the folder as `name_or_path`: there the tensors win.
        """
        if (folder := _folder_of(kwargs)) is not None:
            config_dict = config_of_folder(folder)
        with _as_config_errors("The configuration"):
            return super().from_dict(config_dict, **kwargs)


class LlavaQwen2Config(FastVlmConfig):
    """Config class for Apple's ``llava_qwen2`` in ``AutoConfig``; it creates a :class:`FastVlmConfig`."""

    model_type = "llava_qwen2"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A :class:`FastVlmConfig` from Apple's flat dictionary.

        For a Hub name ``AutoConfig`` passes the file alone, so the result is marked: the model's `from_pretrained`
        then reads what the tensors say as well.
        """
        made = FastVlmConfig.from_dict(from_apple_config(config_dict), **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        if _folder_of(kwargs) is None:
            config.is_provisional = True
        return made


def _folder_of(settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint folder that `name_or_path` in the arguments of `from_dict` names; None for a Hub name or none."""
    path = Path(settings.get("name_or_path") or "")
    return path if path.parts and (path / "config.json").is_file() else None


def decoder_head_dim(text: PretrainedConfig) -> int:
    """Width of the decoder's attention heads."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


@contextmanager
def _as_config_errors(what: str) -> Iterator[None]:
    """Convert transformers' various errors to ConfigError."""
    try:
        yield
    except FastVlmError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{what} cannot be read: {' '.join(lines)[:500]} ({type(error).__name__}).") from error
