"""Plain images that `demo_data` did not draw: one word in one font and size, or equal shapes in a grid.

Everything is drawn here with Pillow's `ImageDraw`, and nothing by `fastvlm_recipes.demo_data`, so these images follow
other rules than those of training. Only the words are taken from there: those that training never shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS

SIDE_PX = 512
MARGIN_PX = 8
COLUMNS, ROWS = 3, 2  # of the grid with shapes; the mini learned to count to six
Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont
# (background, ink): dark on light, and the reverse.
COLORS: tuple[tuple[Color, Color], ...] = (
    ((255, 255, 255), (0, 0, 0)),
    ((245, 240, 225), (25, 40, 90)),
    ((225, 235, 245), (110, 20, 20)),
    ((20, 30, 60), (255, 255, 255)),
)
SHAPES = ("circle", "square", "triangle")
_TRIES = 400


@dataclass(frozen=True)
class Drawing:
    """An image, a question about it, and its answer."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class WordCell:
    """A cell of the table.

    Args:
        lengths: numbers of letters that a word may have.
        size_px: font size (the em), in pixels of an image of 512 x 512.
    """

    lengths: tuple[int, ...]
    size_px: int


def load_font(file: Path | None, size_px: int) -> Font:
    """The font in `file` at `size_px` pixels an em; None is Pillow's own font. Raises OSError for another file."""
    if file is None:
        font = ImageFont.load_default(size=size_px)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise OSError("Pillow was built without FreeType; its own font has one size only")
        return font
    return ImageFont.truetype(str(file), size_px, layout_engine=ImageFont.Layout.BASIC)


def capital_height_px(font: Font) -> int:
    """The height of the letter H as drawn, in pixels."""
    _, top, _, bottom = font.getbbox("H")
    return round(bottom - top)


@lru_cache(maxsize=8)
def _words(length: int) -> tuple[str, ...]:
    return tuple(sorted(word for word in HELD_OUT_WORDS if len(word) == length))


def _word(rng: Random, lengths: Sequence[int]) -> str:
    """A word that training never shows: in small letters, capitalized, or in capitals, equally often."""
    word = rng.choice(_words(rng.choice(list(lengths))))
    return rng.choice((word, word.capitalize(), word.upper()))


def _extent(word: str, font: Font) -> tuple[int, int, int, int]:
    left, top, right, bottom = font.getbbox(word)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def _fits(word: str, font: Font) -> bool:
    left, top, right, bottom = _extent(word, font)
    return max(right - left, bottom - top) <= SIDE_PX - 2 * MARGIN_PX


def fitting_share(rng: Random, cell: WordCell, font: Font) -> float:
    """The share (0 to 1) of the cell's words that fit into the image in this font."""
    return sum(_fits(_word(rng, cell.lengths), font) for _ in range(_TRIES)) / _TRIES


def draw_word_image(rng: Random, cell: WordCell, font: Font) -> Drawing:
    """One horizontal word in one color at a random place, all of it inside. Raises ValueError if none fits."""
    for _ in range(_TRIES):
        word = _word(rng, cell.lengths)
        if _fits(word, font):
            break
    else:
        raise ValueError(f"no word of {cell.lengths} letters fits at {cell.size_px} px")
    background, ink = rng.choice(COLORS)
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), background)
    left, top, right, bottom = _extent(word, font)
    x = rng.randint(MARGIN_PX, SIDE_PX - MARGIN_PX - (right - left)) - left
    y = rng.randint(MARGIN_PX, SIDE_PX - MARGIN_PX - (bottom - top)) - top
    ImageDraw.Draw(image).text((x, y), word, fill=ink, font=font)
    return Drawing(image, "What does the text say?", word)


def draw_count(rng: Random, count: int) -> Drawing:
    """`count` (1 to 6) equal shapes, in reading order in the cells of a grid with 3 columns and 2 rows."""
    background, ink = rng.choice(COLORS)
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), background)
    draw = ImageDraw.Draw(image)
    shape, radius = rng.choice(SHAPES), rng.randint(28, 68)
    for index in range(count):
        x = SIDE_PX * (index % COLUMNS + 0.5) / COLUMNS
        y = SIDE_PX * (index // COLUMNS + 0.5) / ROWS
        _draw_shape(draw, shape, (x, y), radius, ink)
    return Drawing(image, "How many shapes are there?", str(count))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, center: tuple[float, float], radius: float, ink: Color) -> None:
    x, y = center
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif shape == "square":
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=ink)
    else:
        draw.regular_polygon((x, y, radius), 3, fill=ink)
