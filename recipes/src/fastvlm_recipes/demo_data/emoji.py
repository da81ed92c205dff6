"""Images of emoji from rasters made once from the SVG icon sets and kept in one compressed array.

Without that array (on a fresh machine) `load_rasters` returns None and no emoji are drawn.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastvlm_recipes.demo_data.canvas import SIZE, background
from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.shapes import find_spot
from fastvlm_recipes.demo_data.vocabulary import EMOJI_NAMES

DATA_VARIABLE = "FASTVLM_MINI_DATA"
RASTER_FILE = "emoji.npz"


@lru_cache(maxsize=1)
def load_rasters() -> tuple[npt.NDArray[np.uint8], dict[tuple[str, str], tuple[int, ...]]] | None:
    """(icons (N, 128, 128, 4) RGBA, (style, name) -> rows), or None where they were not made."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder is None or not (Path(folder) / RASTER_FILE).is_file():
        return None
    with np.load(Path(folder) / RASTER_FILE) as stored:
        icons, styles, names = stored["icons"], stored["styles"], stored["names"]
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (style, name) in enumerate(zip(styles, names, strict=True)):
        rows.setdefault((str(style), str(name)), []).append(row)
    return icons, {key: tuple(value) for key, value in rows.items()}


def names_in(style: str) -> tuple[str, ...]:
    """The answers that a style can draw."""
    rasters = load_rasters()
    return () if rasters is None else tuple(name for name in EMOJI_NAMES if (style, name) in rasters[1])


def paste_emoji(rng: Random, scene: Scene, style: str, name: str, spot: tuple[float, float], radius: float) -> None:
    """Draw one emoji around `spot` and record it; a fifth are slightly rotated."""
    rasters = load_rasters()
    if rasters is None:
        raise FileNotFoundError(f"no {RASTER_FILE}: run fastvlm_recipes.mini.assets and set {DATA_VARIABLE}")
    icons, rows = rasters
    icon = Image.fromarray(icons[rng.choice(rows[style, name])], "RGBA")
    if rng.random() < 0.2:
        icon = icon.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    side = max(12, round(2 * radius))
    icon = icon.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.5)
    scene.image.paste(icon, (round(spot[0] - side / 2), round(spot[1] - side / 2)), icon)
    scene.things.append(Thing("emoji", name, "", *spot, 2 * radius))


def draw_emoji(rng: Random, styles: tuple[str, ...], count: int | None = None) -> Scene:
    """An image of `count` emoji (1 to 6 at random if None), with repetitions."""
    image, _, name = background(rng)
    scene = Scene(image, "emoji", name)
    if count is None:
        count = rng.choices(range(1, 7), (45, 20, 12, 10, 7, 6))[0]
    style = rng.choice(styles)
    drawable = names_in(style)
    kinds = rng.sample(drawable, min(count, rng.choice((1, 2, 3, 6))))
    taken: list[tuple[float, float, float]] = []
    for index in range(count):
        radius = rng.uniform(32, 120) if count == 1 else rng.uniform(0.55, 0.95) * 110 / count**0.5
        spot = find_spot(rng, radius, taken) if radius < SIZE / 2 else None
        if spot is None:
            continue
        taken.append((*spot, radius))
        paste_emoji(rng, scene, style, kinds[index] if index < len(kinds) else rng.choice(kinds), spot, radius)
    return scene
