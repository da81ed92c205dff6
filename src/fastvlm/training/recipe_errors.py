"""Error messages for recipes: invalid values, and unknown keys with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST_COMPLAINTS = 5

_NEAR_ELSEWHERE = 0.75  # difflib's similarity for keys of other places; for those in place it is difflib's default, 0.6
# Names in transformers' TrainingArguments, in peft's LoraConfig and in Apple's scripts.
_OTHER_NAMES = {
    "learning_rate": "parts.decoder.lr",
    "mm_projector_lr": "parts.projector.lr",
    "mm_vision_tower_lr": "parts.encoder.lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "lr_scheduler_type": "schedule",
    "logging_steps": "log_every",
    "save_steps": "save_every_steps",
    "dataloader_num_workers": "workers",
    "model_max_length": "max_tokens",
    "max_length": "max_tokens",
    "ema_decay": "ema",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.parts",
    "image_folder": "data.images_in",
    "load_in_4bit": "base_bits",
    "load_in_8bit": "base_bits",
}


def nearest_key(key: str, here: Sequence[str], elsewhere: Mapping[str, str]) -> str | None:
    """The known key nearest to an unknown one, or None.

    Args:
        key: its last part, without the keys above.
        here: keys that are valid in its place; preferred.
        elsewhere: last parts of all other keys, each with its whole dotted key.
    """
    name = key.lower().replace("-", "_")
    whole = _OTHER_NAMES.get(name) or elsewhere.get(name)
    if whole is not None:
        last = whole.rpartition(".")[2]
        return last if last in here else whole
    if near := difflib.get_close_matches(name, here, n=1):
        return near[0]
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=_NEAR_ELSEWHERE)
    return elsewhere[near[0]] if near else None


def complaint(found: Sequence[Any], nearest: Callable[[list[str]], str]) -> str:
    """Format pydantic's errors in one line; `nearest` returns a hint for an unknown key, given by its parts."""
    lines = [_one_complaint(entry, nearest) for entry in found[:_MOST_COMPLAINTS]]
    more = f" And {len(found) - _MOST_COMPLAINTS} more." if len(found) > _MOST_COMPLAINTS else ""
    return f"{' '.join(lines)}{more}"


def _one_complaint(entry: Any, nearest: Callable[[list[str]], str]) -> str:
    place = [str(part) for part in entry["loc"] if not str(part).startswith(("function-", "literal[", "constrained-"))]
    key = ".".join(place)
    if entry["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(place)}."
    got = entry.get("input")
    shown = f" (got {got!r})" if isinstance(got, (str, int, float, bool, type(None))) else ""
    message = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{shown}." if key else f"{message}."
