"""Plain images: small horizontal text, and equal shapes in a grid, on one color and without decoration.

In the other kinds words are at least half as wide as the image, so a model trained on those alone reads only large
letters.
"""

from __future__ import annotations

import math
from random import Random

from PIL import Image

from fastvlm_recipes.demo_data.canvas import RGB, SIZE, are_distinct, contrasting, jittered
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.lettering import Setting, pick_face, place_run, set_run, write
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.shapes import draw_shape
from fastvlm_recipes.demo_data.vocabulary import COLORS

SMALL_SIZES_PX = (9, 60)  # px per em of an image of 256 px: 18 to 120 in one of 512
LARGEST_GRID = (4, 3)  # columns, rows
_GROUNDS: tuple[tuple[RGB, str], ...] = (
    ((255, 255, 255), "white"),
    ((255, 255, 255), "white"),
    ((244, 240, 228), ""),
    ((226, 234, 244), ""),
    ((24, 28, 52), ""),
)


def _start(rng: Random, topic: str) -> tuple[Scene, RGB]:
    ground, name = rng.choice(_GROUNDS)
    return Scene(Image.new("RGB", (SIZE, SIZE), ground), topic, name), ground


def draw_small_word(rng: Random, split: Split, text: str) -> Scene:
    """One horizontal word anywhere; its size is log-uniform, so that small letters are as frequent as large."""
    scene, ground = _start(rng, "word")
    face = pick_face(rng, split)
    text = text.upper() if face.is_capitals_only else text
    smallest, largest = SMALL_SIZES_PX
    size = round(math.exp(rng.uniform(math.log(smallest), math.log(largest))))
    run = set_run(text, Setting(face, size))
    while run.mask.width > SIZE and size > smallest:
        size = max(smallest, size * SIZE // run.mask.width)
        run = set_run(text, Setting(face, size))
    is_black = rng.random() < 0.5 and are_distinct(COLORS["black"], ground)
    color = "black" if is_black else contrasting(rng, ground)
    write(scene, run, text, (color, jittered(rng, color)), *place_run(rng, run))
    return scene


def draw_plain_grid(rng: Random, pairs: tuple[tuple[str, str], ...]) -> Scene:
    """One to six shapes of one kind, color and size in the cells of a grid, from its start or anywhere in it."""
    scene, ground = _start(rng, "shapes")
    columns, rows = rng.randint(1, LARGEST_GRID[0]), rng.randint(1, LARGEST_GRID[1])
    cells = [(column, row) for row in range(rows) for column in range(columns)]
    count = rng.randint(1, min(6, len(cells)))
    chosen = cells[:count] if rng.random() < 0.6 else sorted(rng.sample(cells, count))
    pair = rng.choice([pair for pair in pairs if are_distinct(COLORS[pair[0]], ground)])
    cell_px = SIZE / max(columns, rows)
    radius = max(8.0, cell_px * rng.uniform(0.22, 0.42))
    for column, row in chosen:
        x, y = SIZE * (column + 0.5) / columns, SIZE * (row + 0.5) / rows
        scene.things.append(draw_shape(rng, scene.image, pair, x, y, radius))
    return scene
