"""The easy-VQA data set: its images at the mini's size and its questions by image."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES
from fastvlm_recipes.demo_data.wording import Turn, it_is, with_article


@lru_cache(maxsize=2)
def turns_by_image(split: Split) -> dict[int, list[Turn]]:
    """Image number -> its questions and answers."""
    import easy_vqa  # only training and evaluation need the package

    questions, answers, images = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    table: dict[int, list[Turn]] = {}
    for question, answer, image in zip(questions, answers, images, strict=True):
        table.setdefault(image, []).append((question, said(answer)))
    return table


def said(answer: str) -> str:
    """The answer as the mini says it: Yes, No, It is red., It is a circle."""
    if answer in ("yes", "no"):
        return answer.capitalize()
    return it_is(answer if answer in COLOR_NAMES else with_article(answer))


@lru_cache(maxsize=2)
def _paths(split: Split) -> dict[int, str]:
    import easy_vqa

    paths: dict[int, str] = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return paths


def file_of(split: Split, number: int) -> bytes:
    """The PNG file as the data set has it, 64 x 64 px."""
    return Path(_paths(split)[number]).read_bytes()


def image(split: Split, number: int) -> Image.Image:
    """SIZE x SIZE RGB, enlarged from 64 px as the image processor does it (bicubic)."""
    with Image.open(_paths(split)[number]) as small:
        return small.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


@lru_cache(maxsize=2)
def numbers(split: Split) -> tuple[int, ...]:
    """The images that have questions, in order."""
    return tuple(sorted(turns_by_image(split)))
