"""LLaVA's turns (``from``, ``value``, ``<image>`` in the text) -> messages, as the chat template takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastvlm.errors import DataError
from fastvlm.processing.prompt import IMAGE_TOKEN

# LLaVA's and ShareGPT's names of the speakers.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Qwen2's tokenizer would join this with the line break that ends the header of a turn (its pattern `\s*[\r\n]+`).
_BLANK_START = re.compile(r"\A\s*[\r\n]+")


def is_llava_turn(turn: Any) -> bool:
    """True if a turn is ``{"from": ..., "value": ...}``."""
    return isinstance(turn, Mapping) and turn.get("from") is not None and "value" in turn


def llava_message(turn: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Convert one turn to a message. Raises DataError: an unknown speaker, or a value that is not a string."""
    speaker, text = turn["from"], turn["value"]
    if speaker not in ROLES:
        raise DataError(f"turn {index} is from {speaker!r}; known are {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise DataError(f"turn {index} has the value {text!r}; expected a text")
    role = ROLES[speaker]
    if role == "user":
        return {"role": role, "content": split_at_images(text)}
    return {"role": role, "content": [{"type": "text", "text": text}]}


def split_at_images(text: str) -> list[dict[str, Any]]:
    """Split a user's text into text items and an image item for each ``<image>``.

    White space next to ``<image>`` is removed, and a text of white space only is dropped, because the chat template
    puts one line break between an image and a text, and moves images at the end of the text to its front.
    """
    parts = text.split(IMAGE_TOKEN)
    last = len(parts) - 1
    has_image_before = bool(last) and not "".join(parts[1:]).strip()
    items: list[dict[str, Any]] = []
    for place, part in enumerate(parts):
        part = part.lstrip() if place or has_image_before else part  # noqa: PLW2901
        part = part.rstrip() if place < last else part  # noqa: PLW2901
        if part or not last:
            items.append({"type": "text", "text": part})
        if place < last:
            items.append({"type": "image"})
    return items


def without_blank_start(text: str) -> str:
    """Remove blank lines at the start of an assistant's text.

    The prompt ends with ``<|im_start|>assistant`` and a line break. The tokenizer would join a further line break with
    it, so that the prompt would not be a prefix of the training sequence.
    """
    return _BLANK_START.sub("", text)
