"""Inputs of all contestants: a JPEG like a photograph, and prompts of a given length. Seeded."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

FIRST_QUESTION = "Describe the image."
SECOND_QUESTION = "What is in the middle?"
_WORDS = ("what", "is", "the", "colour", "of", "this", "circle", "and", "how", "many", "are", "there")
_JPEG_QUALITY = 90
_GRAIN = 0.06


def photo_jpeg(width_px: int, height_px: int, seed: int = 0) -> bytes:
    """A JPEG with about a photograph's entropy: patches of color at five scales, and a little grain."""
    draw = random.Random(seed)  # noqa: S311  # an image, no secret
    image = Image.new("RGB", (width_px, height_px), "gray")
    for cells in (3, 7, 17, 41, 97):
        small = Image.frombytes("RGB", (cells, cells), draw.randbytes(3 * cells * cells))
        image = Image.blend(image, small.resize((width_px, height_px), Image.Resampling.BICUBIC), 0.35)
    grain = Image.frombytes("RGB", (width_px, height_px), draw.randbytes(3 * width_px * height_px))
    image = Image.blend(image, grain, _GRAIN)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def long_question(count_tokens: Callable[[str], int], num_tokens: int, seed: int = 0) -> str:
    """A question whose prompt has `num_tokens` tokens or a few more; texts of two seeds begin differently.

    Args:
        count_tokens: tokens of the whole prompt around a question.
        num_tokens: wanted.
        seed: the number that the question begins with.
    """
    draw = random.Random(seed)  # noqa: S311
    words = [str(seed)]
    while (count := count_tokens(" ".join(words))) < num_tokens:
        words.extend(draw.choices(_WORDS, k=max(1, (num_tokens - count) // 4)))
    return " ".join(words)


class TemplatedProcessor(Protocol):
    """A processor with a chat template: ours, or that of transformers."""

    @property
    def apply_chat_template(self) -> Callable[..., Any]:
        """Turns messages into token ids."""


def text_prompt(processor: TemplatedProcessor, num_tokens: int, seed: int = 0) -> Any:
    """`input_ids` and `attention_mask` (1, T) of a :func:`long_question` in the chat template of `processor`."""

    def inputs(question: str) -> Any:
        messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        return processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    return inputs(long_question(lambda text: int(inputs(text)["input_ids"].shape[1]), num_tokens, seed))
