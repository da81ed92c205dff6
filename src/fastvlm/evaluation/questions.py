"""Benchmark questions and their conversion to chat messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastvlm.images import open_image

ImageSource = Path | str | bytes  # a file, a data URI, or an encoded image
GRAY = (128, 128, 128)
_GRAY_SIDE_PX = 256
_PLACE = re.compile(r"<image (\d+)>")  # position of an image in MMMU's texts
MOST_OPTIONS = 26
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question about images with its correct answers.

    Args:
        id: its key in the predictions; unique in a run.
        test: the part of the benchmark whose score it counts for.
        text: the question; ``<image 2>`` in it is the position of the second image, others come before the text.
        images: none, one or several.
        answers: at least one; the letter if there are options.
        choices: the options' texts, A first; empty if the answer is free.
        is_blind: True to show a gray image in place of each image, to measure answers that do not depend on it.
    """

    id: str
    test: str
    text: str
    images: tuple[ImageSource, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    is_blind: bool = False


def letters_for(choices: Sequence[str]) -> str:
    """Letters of the options: ``"ABC"`` for three; at most 26."""
    return _LETTERS[: len(choices)]


def with_options(text: str, choices: Sequence[str]) -> str:
    """Append lines ``A. first option`` and so on to `text`, as LLaVA and lmms-eval do."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters_for(choices), choices, strict=True)]
    return "\n".join([text, *lines])


def missing_places(question: Question) -> list[int]:
    """Numbers of images that the text refers to (``<image 3>``) and the question lacks."""
    numbers = sorted({int(number) for number in _PLACE.findall(question.text)})
    return [number for number in numbers if not 1 <= number <= len(question.images)]


def messages_of(question: Question, hint: str = "") -> list[dict[str, Any]]:
    """The question as one user message: images without a position in the text first; `hint` is the last line.

    Raises:
        ImageError: an image that cannot be opened.
    """
    gray = Image.new("RGB", (_GRAY_SIDE_PX, _GRAY_SIDE_PX), GRAY)
    images = [gray if question.is_blind else open_image(image) for image in question.images]
    text = f"{question.text}\n{hint}" if hint else question.text
    pieces = _PLACE.split(text)  # text, number, text, number, ..., text
    placed = {int(number) - 1 for number in pieces[1::2]} & set(range(len(images)))
    items: list[dict[str, Any]] = [
        {"type": "image", "image": image} for index, image in enumerate(images) if index not in placed
    ]
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            items += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
        elif int(piece) - 1 in placed:
            items.append({"type": "image", "image": images[int(piece) - 1]})
    return [{"role": "user", "content": items}]
