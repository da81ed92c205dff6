"""Benchmark questions and their conversion to chat messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fastvlm.images import open_image

ImageSource = Path | str | bytes  # a file, a data URI, or an encoded image
GRAY = (128, 128, 128)
_GRAY_SIDE_PX = 256
_PLACE = re.compile(r"<image (\d+)>")  # where MMMU's texts want an image
MOST_OPTIONS = 26
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question about images with its correct answers.

    Args:
        id: known by it in the predictions; unique in a run.
        test: the part of the benchmark whose score it counts for.
        text: what is asked; ``<image 2>`` in it is where the second image stands, the others stand before the text.
        images: none, one or several.
        answers: at least one; of multiple choice the letter.
        choices: the options' texts, A first; empty if the answer is free.
        is_blind: show a gray image in place of each image.
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


def seen_gray(question: Question) -> Question:
    """The same question about uniform gray images, to measure answers that do not depend on the image."""
    return replace(question, is_blind=True)


def missing_places(question: Question) -> list[int]:
    """Numbers of images that the text refers to (``<image 3>``) and the question lacks."""
    numbers = sorted({int(number) for number in _PLACE.findall(question.text)})
    return [number for number in numbers if not 1 <= number <= len(question.images)]


def messages_of(question: Question, hint: str = "") -> list[dict[str, Any]]:
    """The question as one user message: images without a position in the text first; `hint` is the last line.

    Raises:
        ImageError: an image that cannot be opened.
    """
    images = [_opened(image, is_blind=question.is_blind) for image in question.images]
    text = f"{question.text}\n{hint}" if hint else question.text
    pieces = _PLACE.split(text)  # text, number, text, number, ..., text
    placed = {int(number) - 1 for number in pieces[1::2]} & set(range(len(images)))
    items: list[dict[str, Any]] = [_image_item(image) for i, image in enumerate(images) if i not in placed]
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            items += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
        elif int(piece) - 1 in placed:
            items.append(_image_item(images[int(piece) - 1]))
    return [{"role": "user", "content": items}]


def _image_item(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}


def _opened(image: ImageSource, *, is_blind: bool) -> Image.Image:
    if is_blind:
        return Image.new("RGB", (_GRAY_SIDE_PX, _GRAY_SIDE_PX), GRAY)
    return open_image(image)
