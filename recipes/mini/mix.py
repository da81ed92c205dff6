"""Which picture comes next: the seeded mixes of the two training phases.

`draw(phase, index)` depends on nothing but its arguments, so training resumes at a number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fastvlm.demo_data import words
from fastvlm.demo_data.canvas import weathered
from fastvlm.demo_data.emoji import draw_emoji, names_in
from fastvlm.demo_data.fonts import Split
from fastvlm.demo_data.kinds import draw_letters
from fastvlm.demo_data.scene import Scene
from fastvlm.demo_data.shapes import draw_shapes
from fastvlm.demo_data.text import draw_lines, draw_page, draw_word
from fastvlm.demo_data.vocabulary import EMOJI_STYLES

# Shares of the kinds of picture in each phase, in percent.
ENCODER_MIX: dict[str, int] = {"page": 8, "grid": 22, "lines": 8, "letter": 12, "word": 16, "shapes": 28, "emoji": 6}
# The joint phase begins with what is easiest to answer: many tasks at once came to nothing for long.
FIRST_JOINT_MIX: dict[str, int] = {"shapes": 72, "letter": 28}
JOINT_MIX: dict[str, int] = {"shapes": 34, "letter": 10, "word": 40, "grid": 6, "emoji": 10}
FIRST_JOINT_PICTURES = 20_000


def joint_mix(index: int) -> dict[str, int]:
    """The mix that picture number `index` of the joint phase is drawn from."""
    return FIRST_JOINT_MIX if index < FIRST_JOINT_PICTURES else JOINT_MIX


def _styles() -> tuple[str, ...]:
    return tuple(style for style in EMOJI_STYLES if names_in(style))


def _word(rng: Random, split: Split) -> Scene:
    length = rng.choices((2, 3, 4, 5, 6, 7, 8), (20, 52, 14, 7, 4, 2, 1))[0]
    text = words.token(rng, length)
    if rng.random() < 0.15:
        text = words.price(rng) if rng.random() < 0.5 else words.number(rng)
    return draw_word(rng, split, text)


def _lines(rng: Random, split: Split) -> Scene:
    count = rng.choices((2, 3, 4), (50, 35, 15))[0]
    return draw_lines(rng, split, [words.token(rng, rng.randint(2, 6)) for _ in range(count)])


def _shapes(rng: Random, _split: Split) -> Scene:
    return draw_shapes(rng)


def _emoji(rng: Random, _split: Split) -> Scene:
    styles = _styles()
    return draw_emoji(rng, styles) if styles else draw_shapes(rng)


MAKERS: dict[str, Callable[[Random, Split], Scene]] = {
    "page": draw_page,
    "grid": draw_letters,
    "lines": _lines,
    "letter": lambda rng, split: draw_word(rng, split, words.single(rng), "letter"),
    "word": _word,
    "shapes": _shapes,
    "emoji": _emoji,
}


def draw(phase: str, index: int, mix: dict[str, int], split: Split = "train") -> tuple[Scene, Random]:
    """Picture number `index` of a phase, and the generator to go on with (for its questions)."""
    rng = Random(f"{phase}:{split}:{index}")
    topic = rng.choices(tuple(mix), tuple(mix.values()))[0]
    scene = MAKERS[topic](rng, split)
    scene.image = weathered(rng, scene.image)
    return scene, rng
