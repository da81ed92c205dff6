"""The kinds of images that can be drawn, their shares, and the packages that some of them need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random

from PIL import Image

from fastvlm_recipes.demo_data import easy_questions, words
from fastvlm_recipes.demo_data.canvas import degraded
from fastvlm_recipes.demo_data.charts import draw_chart
from fastvlm_recipes.demo_data.clothes import clothes_folder, draw_clothes
from fastvlm_recipes.demo_data.emoji import draw_emoji, names_in
from fastvlm_recipes.demo_data.fonts import Split, families
from fastvlm_recipes.demo_data.plain import draw_plain_grid, draw_small_word
from fastvlm_recipes.demo_data.receipts import draw_receipt
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.scene_questions import conversation
from fastvlm_recipes.demo_data.shapes import ALL_PAIRS, TRAIN_PAIRS, draw_shapes
from fastvlm_recipes.demo_data.text import draw_grid, draw_lines, draw_word
from fastvlm_recipes.demo_data.vocabulary import EMOJI_STYLES, HELD_OUT_STYLE
from fastvlm_recipes.demo_data.wording import Turn

# The second edition's shares, in percent.
MIX: Mapping[str, int] = {
    "shapes": 16, "letter": 4, "word": 26, "grid": 3, "lines": 4, "emoji": 13, "receipt": 13, "chart": 10,
    "fashion": 8, "easy": 3,
}  # fmt: skip
# Kinds that the shipped edition never saw, for the next one: recipes/mini/next_edition.yaml.
NEXT_KINDS: tuple[str, ...] = ("small", "plain")
WORD_LENGTHS = (2, 3, 4, 5, 6, 7, 8)
WORD_SHARES = (8, 20, 18, 17, 14, 12, 11)


@dataclass(frozen=True)
class Sample:
    """One drawn image with one to five questions and answers; `kind` is one of DRAWERS."""

    scene: Scene
    turns: list[Turn]
    kind: str

    @property
    def image(self) -> Image.Image:
        """The image, RGB."""
        return self.scene.image


def _read(rng: Random, split: Split, length: int) -> str:
    """A word of `length` letters; in the test part a held-out one in half of the cases."""
    if split == "test" and length > 2 and rng.random() < 0.5:
        return words.held_out(rng, length, length)
    return words.longer(rng, length)


def _text(rng: Random, split: Split) -> str:
    text = _read(rng, split, rng.choices(WORD_LENGTHS, WORD_SHARES)[0])
    if rng.random() < 0.15:
        text = words.price(rng) if rng.random() < 0.5 else words.number(rng)
    return text


def _pairs(split: Split) -> tuple[tuple[str, str], ...]:
    return TRAIN_PAIRS if split == "train" else ALL_PAIRS


def _lines(rng: Random, split: Split) -> Scene:
    count = rng.choices((2, 3, 4), (50, 35, 15))[0]
    return draw_lines(rng, split, [_read(rng, split, rng.randint(2, 7)) for _ in range(count)])


def draw_letters(rng: Random, split: Split) -> Scene:
    """A grid of single characters, in a quarter of the cases of pairs."""
    columns, rows = rng.choice(((2, 1), (1, 2), (2, 2), (2, 2), (3, 1), (3, 2), (2, 3), (3, 3)))
    return draw_grid(rng, split, columns, rows, rng.choice((1, 1, 1, 2)))


def _shapes(rng: Random, split: Split) -> Scene:
    return draw_shapes(rng, pairs=_pairs(split))


def _emoji(rng: Random, split: Split) -> Scene:
    return draw_emoji(rng, tuple(style for style in emoji_styles(split) if names_in(style)))


def emoji_styles(split: Split) -> tuple[str, ...]:
    """The drawing styles of a part; the held-out one belongs to the test alone."""
    return EMOJI_STYLES if split == "train" else (HELD_OUT_STYLE,)


def _easy(rng: Random, split: Split) -> Scene:
    table = easy_questions.turns_by_image(split)
    number = rng.choice(easy_questions.numbers(split))
    turns = table[number]
    return Scene(easy_questions.image(split, number), "easy", asked=rng.sample(turns, min(len(turns), 5)))


DRAWERS: dict[str, Callable[[Random, Split], Scene]] = {
    "shapes": _shapes,
    "letter": lambda rng, split: draw_word(rng, split, words.single(rng), "letter"),
    "word": lambda rng, split: draw_word(rng, split, _text(rng, split)),
    "small": lambda rng, split: draw_small_word(rng, split, _text(rng, split)),
    "plain": lambda rng, split: draw_plain_grid(rng, _pairs(split)),
    "grid": draw_letters,
    "lines": _lines,
    "emoji": _emoji,
    "receipt": draw_receipt,
    "chart": draw_chart,
    "fashion": draw_clothes,
    "easy": _easy,
}


def _generator(seed: int, split: Split, index: int) -> Random:
    return Random(f"demo:{seed}:{split}:{index}")


def _kind(rng: Random, mix: Mapping[str, int]) -> str:
    return rng.choices(tuple(mix), tuple(mix.values()))[0]


def kind_of(seed: int, split: Split, index: int, mix: Mapping[str, int]) -> str:
    """The kind of image number `index`, without drawing it."""
    return _kind(_generator(seed, split, index), mix)


def draw_sample(seed: int, split: Split, index: int, mix: Mapping[str, int]) -> Sample:
    """Image number `index`: it depends on the arguments alone (and on the fonts and icons of the machine)."""
    rng = _generator(seed, split, index)
    kind = _kind(rng, mix)
    scene = DRAWERS[kind](rng, split)
    scene.image = degraded(rng, scene.image)
    return Sample(scene, conversation(rng, scene), kind)


def lacking(split: Split) -> dict[str, str]:
    """Kinds that cannot be drawn on this machine -> what to install."""
    absent: dict[str, str] = {}
    if not any(names_in(style) for style in emoji_styles(split)):
        absent["emoji"] = "icons of npm's @iconify-json sets: FASTVLM_MINI_DATA, see recipes/README.md"
    if clothes_folder() is None:
        absent["fashion"] = "Debian's package dataset-fashion-mnist"
    if find_spec("easy_vqa") is None:
        absent["easy"] = "pip install easy-vqa"
    return absent


def has_fonts(split: Split) -> bool:
    """Whether the machine has fonts of this part; without them Pillow's own font is used."""
    return families(split) != {"": ()}
