"""Ranges of the numbers in a configuration, checked before a model is built from it.

The limits are far above every published model. They refuse a file with a billion layers, no heads or a width of -1 with
a clear error, instead of an endless loop or an error from inside a library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fastvlm.errors import ConfigError, UsageError

# Sizes of the decoder: smallest and largest.
_SIZES = {
    "vocab_size": (1, 1 << 22),
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (1, 4096),
    "max_position_embeddings": (1, 1 << 24),
    "sliding_window": (1, 1 << 24),
    "max_window_layers": (0, 1 << 24),
}
_REALS = {
    "rms_norm_eps": (0.0, 1.0),
    "rope_theta": (1e-3, 1e15),
    "attention_dropout": (0.0, 1.0),
    "initializer_range": (0.0, 100.0),
}
_FLAGS = ("tie_word_embeddings", "use_cache", "use_sliding_window")
LONGEST_IMAGE = 1 << 16  # visual tokens
_MAY_BE_NONE = frozenset({"head_dim", "sliding_window", "num_key_value_heads", "max_window_layers"})
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LARGEST_TOKEN = 1 << 31
_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
# Whoever runs a model chooses the implementation: the name may be a Hub repository whose code would be downloaded.
_CODE_CHOICES = ("attn_implementation", "experts_implementation")


def check_number(
    owner: str, name: str, value: Any, smallest: float, largest: float, kinds: tuple[type, ...] = (int,)
) -> None:
    """Raise ConfigError unless `value` is a number of `kinds`, not a bool, from `smallest` to `largest`."""
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and smallest <= value <= largest:
        return
    what = "a whole number" if kinds == (int,) else "a number"
    raise ConfigError(f"{owner}.{name} is {_shown(value)}; expected {what} from {smallest} to {largest}.")


def check_decoder_numbers(text: Mapping[str, Any], owner: str = "text_config") -> None:
    """Check type and range of every known number of a decoder, and that widths and heads match; skip absent keys.

    Raises:
        ConfigError: names the first invalid key.
    """
    given = {key: value for key, value in text.items() if value is not None or key not in _MAY_BE_NONE}
    for name, limits in _SIZES.items():
        if name in given:
            check_number(owner, name, given[name], *limits)
    for name, bounds in _REALS.items():
        if name in given:
            check_number(owner, name, given[name], *bounds, (int, float))
    for name in _FLAGS:
        if name in given and not isinstance(given[name], bool):
            raise ConfigError(f"{owner}.{name} is {_shown(given[name])}; expected true or false.")
    _check_tokens(given, owner)
    _check_heads(given, owner)
    for name in ("rope_parameters", "rope_scaling"):
        _check_positions(given.get(name), f"{owner}.{name}")


def _check_tokens(given: Mapping[str, Any], owner: str) -> None:
    for name in _TOKENS:
        value = given.get(name)
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is not None:
                check_number(owner, name, token, -1, _LARGEST_TOKEN)


def _check_positions(positions: Any, owner: str) -> None:
    if positions is None:
        return
    if not isinstance(positions, Mapping):
        raise ConfigError(f"{owner} is {_shown(positions)}; expected an object.")
    kind = positions.get("rope_type", positions.get("type", "default"))
    if not isinstance(kind, str):
        raise ConfigError(f"{owner}.rope_type is {_shown(kind)}; expected a name, such as 'default'.")
    if "rope_theta" in positions:
        check_number(owner, "rope_theta", positions["rope_theta"], *_REALS["rope_theta"], (int, float))
    if "factor" in positions:
        check_number(owner, "factor", positions["factor"], 1e-3, 1e6, (int, float))


def _check_heads(given: Mapping[str, Any], owner: str) -> None:
    width, heads = given.get("hidden_size"), given.get("num_attention_heads")
    groups = given.get("num_key_value_heads")
    if heads is None:
        return
    if width is not None and given.get("head_dim") is None and width % heads:
        raise ConfigError(f"{owner}.hidden_size is {width}, which {heads} attention heads do not divide.")
    if groups is not None and heads % groups:
        raise ConfigError(f"{owner}.num_attention_heads is {heads}, which {groups} key-value heads do not divide.")


def check_dtype(owner: str, value: Any) -> None:
    """Raise ConfigError unless `value` is None, a torch dtype, or the name of a floating one.

    transformers takes any attribute of torch by this name.
    """
    if value is None or type(value).__module__ == "torch":
        return
    if not isinstance(value, str) or dtype_name(value) not in _DTYPES:
        raise ConfigError(f"{owner}.dtype is {_shown(value)}; expected one of {', '.join(sorted(_DTYPES))}.")


def dtype_name(dtype: object) -> str:
    """Name of a torch dtype as files have it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def without_code_choices(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of `config` without the keys that choose an implementation, at any depth; and the names of these keys."""
    kept: dict[str, Any] = {}
    found: list[str] = []
    for key, value in config.items():
        if str(key).strip("_").removesuffix("_internal") in _CODE_CHOICES:
            found.append(str(key))
        elif isinstance(value, Mapping):
            kept[key], inside = without_code_choices(value)
            found += [f"{key}.{name}" for name in inside]
        else:
            kept[key] = value
    return kept, found


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width in pixels from ``512`` or ``768x1024`` (height first); None stays None.

    Raises:
        UsageError: anything else. Whether the model can take the size is the processor's to say.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip().lower())
    if match is None:
        raise UsageError(
            f"--image-size is {text!r}; expected a side in pixels such as 512, or HEIGHTxWIDTH such as 768x1024."
        )
    return int(match[1]), int(match[2] or match[1])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
