"""What the encoder is made of: the published hyper-parameters, and every number that follows from them.

No library is imported here; :class:`fastvlm.FastViTHDConfig` adds transformers' base class.

Source: apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/mci.py``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastvlm.config_limits import check_number
from fastvlm.errors import ConfigError

STEM_STRIDE = 4  # two of the stem's three convolutions have stride 2
LARGEST_KERNEL = 63
MOST_STAGES, MOST_BLOCKS, LARGEST_WIDTH, LARGEST_RATIO = 16, 512, 1 << 16, 64
ATTENTION_HEAD_DIM = 32  # fixed in FastViT's attention blocks

# timm's arguments of `fastvit_mci3`, that is, the published encoder. A checkpoint's `model_args` override them.
PUBLISHED_MODEL_ARGS: dict[str, Any] = {
    "layers": [2, 12, 24, 4, 2],
    "embed_dims": [96, 192, 384, 768, 1536],
    "mlp_ratios": [4, 4, 4, 4, 4],
    "token_mixers": ["repmixer", "repmixer", "repmixer", "attention", "attention"],
    "pos_embs": [None, None, None, 7, 7],
    "downsamples": [False, True, True, True, True],
    "se_downsamples": [False, False, False, False, False],
    "lkc_use_act": True,
    "stem_use_scale_branch": False,
    "inference_mode": True,
    "repmixer_kernel_size": 3,
    "down_patch_size": 7,
    "cls_ratio": 2.0,
    "layer_scale_init_value": 1e-5,
}
TOKEN_MIXERS = ("repmixer", "attention")
# Arguments with one entry a stage, and the type of an entry (None: checked where it is read).
PER_STAGE_ARGS: dict[str, type | tuple[type, ...] | None] = {
    "layers": int,
    "embed_dims": int,
    "mlp_ratios": (int, float),
    "token_mixers": str,
    "pos_embs": None,
    "downsamples": bool,
    "se_downsamples": bool,
}

# Keys that files in the wild carry and that decide nothing here.
CARRIED_VISION_KEYS = {
    "num_classes",
    "num_features",
    "label_names",
    "pretrained_cfg",
    "timm_version",
    "initializer_factor",
}
CARRIED_KEYS = {"ignore_index", "image_token_id", "use_cache", "auto_map", "quantization_config", "dtype"}
# Arguments of transformers' own base class that are not dataclass fields.
BASE_KEYS = {
    "torch_dtype",
    "num_labels",
    "name_or_path",
    "output_attentions",
    "attn_implementation",
    "experts_implementation",
    "per_layer_config",
    "model_type",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}


def num_visual_tokens(height_px: int, width_px: int, stride_px: int = 64) -> int:
    """Visual tokens of one image of `height_px` x `width_px` pixels: ``ceil(H / stride) * ceil(W / stride)``.

    Every stride-2 convolution maps n to ceil(n / 2), so six of them map n to ceil(n / 64): 1024 px give 256 tokens.
    The processor (placeholders) and the model (features) both ask this function.
    """
    return math.ceil(height_px / stride_px) * math.ceil(width_px / stride_px)


@dataclass(frozen=True)
class StageConfig:
    """One stage of the encoder, everything derived: channels, blocks, mixer, and the layers before the blocks."""

    index: int
    depth: int
    in_channels: int
    channels: int
    token_mixer: str
    mlp_ratio: float
    has_downsample: bool
    has_se: bool
    position_kernel: tuple[int, int] | None


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError naming the first key of `given` that is not in `known`, with the nearest known name."""
    known_keys = sorted(known)
    for key in given:
        if key in known_keys or key.startswith("_"):
            continue
        near = difflib.get_close_matches(key, known_keys, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known_keys)}."
        raise ConfigError(f"{owner} got the unknown key {key!r}. {hint}")


def check_type(owner: str, name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Raise ConfigError unless `value` of the field `owner.name` is of `kind`; a bool is not a number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise ConfigError(f"{owner}.{name} is {value!r}; expected {expected}.")


def _kernel_pair(value: Any) -> tuple[int, int] | None:
    """A `pos_embs` entry as a kernel (height, width) in pixels of the map, or None."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or not all(type(k) is int and 0 < k <= LARGEST_KERNEL and k % 2 for k in pair):
        raise ConfigError(f"pos_embs takes null, an odd kernel size or a pair of them; got {value!r}.")
    return (pair[0], pair[1])


class EncoderConfig:
    """The encoder's arguments, checked, and every number that follows from them.

    Args:
        hidden_size: channels of the feature map, ``embed_dims[-1] * cls_ratio``; None takes that, another is refused.
        model_args: overrides of the published encoder, by timm's names.
        shorthand: the same as keywords; they win.

    Attributes:
        architecture: always ``"fastvit_mci3"``.

    Raises:
        ConfigError: an unknown argument, stages of different lengths, a width that the next layer cannot take.
    """

    architecture: str = "fastvit_mci3"
    hidden_size: int
    model_args: dict[str, Any] | None

    def __init__(self, hidden_size: int | None = None, model_args: Any = None, **shorthand: Any) -> None:
        self.settle(hidden_size, model_args, shorthand)

    def settle(self, hidden_size: int | None, model_args: Any, shorthand: Mapping[str, Any]) -> None:
        """Take the arguments, checked, and derive the width.

        Args:
            hidden_size: checked against the derived width; None takes that.
            model_args: the stored dictionary, or None.
            shorthand: arguments given as keywords; they win.

        Raises:
            ConfigError: an unknown argument, stages of different lengths, a width that the next layer cannot take.
        """
        check_type("FastViTHDConfig", "model_args", model_args, (dict, type(None)))
        given = {**(model_args or {}), **shorthand}
        refuse_unknown("FastViTHDConfig.model_args", given, PUBLISHED_MODEL_ARGS)
        self.model_args = {
            "inference_mode": True,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in given.items()},
        }
        self._check()
        derived = int(self.stages[-1].channels * self._arg("cls_ratio"))
        if hidden_size is not None and (type(hidden_size) is not int or hidden_size != derived):
            raise ConfigError(
                f"FastViTHDConfig.hidden_size is {hidden_size}, but embed_dims {self._arg('embed_dims')} give a "
                f"feature map of {derived} channels. Leave hidden_size out, or change embed_dims."
            )
        self.hidden_size = derived

    def _arg(self, name: str) -> Any:
        return (self.model_args or {}).get(name, PUBLISHED_MODEL_ARGS[name])

    def _check(self) -> None:
        if self.architecture != "fastvit_mci3":
            raise ConfigError(
                f"FastViTHDConfig.architecture is {self.architecture!r}; FastVLM's encoder is 'fastvit_mci3'. "
                "Other timm encoders need transformers' own FastVlmForConditionalGeneration."
            )
        self._check_lists()
        self._check_numbers()
        for stage in self.stages:
            self._check_stage(stage)

    def _check_lists(self) -> None:
        owner = "FastViTHDConfig.model_args"
        for name in PER_STAGE_ARGS:
            check_type(owner, name, self._arg(name), (list, tuple))
        num_stages = len(self._arg("layers"))
        if not 0 < num_stages <= MOST_STAGES:
            raise ConfigError(f"{owner}.layers has {num_stages} stages; expected 1 to {MOST_STAGES}.")
        for name, kind in PER_STAGE_ARGS.items():
            values = self._arg(name)
            if len(values) < num_stages:
                raise ConfigError(
                    f"{owner}.{name} has {len(values)} entries for {num_stages} stages in 'layers'; give one entry a "
                    "stage."
                )
            for index, value in enumerate(values[:num_stages]):
                if kind is not None:
                    check_type(owner, f"{name}[{index}]", value, kind)

    def _check_numbers(self) -> None:
        owner = "FastViTHDConfig.model_args"
        for name, smallest in (("repmixer_kernel_size", 1), ("down_patch_size", 3)):
            size = self._arg(name)
            if type(size) is not int or not smallest <= size <= LARGEST_KERNEL or size % 2 == 0:
                raise ConfigError(
                    f"{owner}.{name} is {size!r}; expected an odd number from {smallest} to {LARGEST_KERNEL}."
                )
        for name in ("lkc_use_act", "stem_use_scale_branch", "inference_mode"):
            check_type(owner, name, self._arg(name), bool)
        check_number(owner, "layer_scale_init_value", self._arg("layer_scale_init_value"), -1e3, 1e3, (int, float))
        ratio = self._arg("cls_ratio")
        check_number(owner, "cls_ratio", ratio, 1, LARGEST_RATIO, (int, float))
        if int(ratio) != ratio:
            raise ConfigError(
                f"{owner}.cls_ratio is {ratio!r}; the grouped last convolution needs a whole multiple, at least 1."
            )

    @staticmethod
    def _check_stage(stage: StageConfig) -> None:
        where = f"stage {stage.index} of the encoder"
        if not (0 <= stage.depth <= MOST_BLOCKS and 1 <= stage.channels <= LARGEST_WIDTH):
            raise ConfigError(
                f"{where} has depth {stage.depth} and width {stage.channels}; expected a depth from 0 to "
                f"{MOST_BLOCKS} and a width from 1 to {LARGEST_WIDTH}."
            )
        check_number(where, "mlp_ratio", stage.mlp_ratio, 0, LARGEST_RATIO, (int, float))
        if not int(stage.channels * stage.mlp_ratio) >= 1:
            raise ConfigError(
                f"{where} has the FFN ratio {stage.mlp_ratio}, so its FFN has no channels; expected a positive number."
            )
        if stage.token_mixer not in TOKEN_MIXERS:
            raise ConfigError(
                f"{where} has the token mixer {stage.token_mixer!r}; known are {', '.join(TOKEN_MIXERS)}."
            )
        if stage.token_mixer == "attention" and stage.channels % ATTENTION_HEAD_DIM:
            raise ConfigError(
                f"{where} is {stage.channels} wide; attention needs a multiple of {ATTENTION_HEAD_DIM} (one head)."
            )
        if stage.has_downsample and stage.channels % stage.in_channels:
            raise ConfigError(
                f"{where} goes from {stage.in_channels} to {stage.channels} channels; its grouped downsampling "
                "convolution needs a whole multiple."
            )

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages with every derived number, in order."""
        widths = list(self._arg("embed_dims"))
        stages = []
        for index, depth in enumerate(self._arg("layers")):
            in_channels = widths[max(index - 1, 0)]
            stages.append(
                StageConfig(
                    index=index,
                    depth=depth,
                    in_channels=in_channels,
                    channels=widths[index],
                    token_mixer=self._arg("token_mixers")[index],
                    mlp_ratio=self._arg("mlp_ratios")[index],
                    has_downsample=self._arg("downsamples")[index] or in_channels != widths[index],
                    has_se=self._arg("se_downsamples")[index],
                    position_kernel=_kernel_pair(self._arg("pos_embs")[index]),
                )
            )
        return tuple(stages)

    @property
    def stride_px(self) -> int:
        """Pixels a side that become one visual token: 64 as published; each downsampling doubles it."""
        return STEM_STRIDE << sum(stage.has_downsample for stage in self.stages)

    @property
    def is_inference_form(self) -> bool:
        """True for fused convolutions (as published), False for the multi-branch training form."""
        return bool(self._arg("inference_mode"))

    @property
    def layer_scale_init(self) -> float:
        """Value that fills every layer scale of a new encoder."""
        return float(self._arg("layer_scale_init_value"))

    @property
    def repmixer_kernel(self) -> int:
        """Kernel size of RepMixer's depthwise convolution."""
        return int(self._arg("repmixer_kernel_size"))

    @property
    def downsample_kernel(self) -> int:
        """Kernel size of the stride-2 convolution between stages."""
        return int(self._arg("down_patch_size"))

    @property
    def has_downsample_activation(self) -> bool:
        """True if a GELU follows the 7x7 of each downsampling (timm's `lkc_use_act`)."""
        return bool(self._arg("lkc_use_act"))

    @property
    def has_stem_scale_branch(self) -> bool:
        """True if the stem's training form has 1x1 scale branches."""
        return bool(self._arg("stem_use_scale_branch"))
