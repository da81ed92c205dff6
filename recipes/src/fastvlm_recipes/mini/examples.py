"""Draws the example images: with unseen seeds, fonts, words and pairs of color and shape; also resizes one photo.

python -m fastvlm_recipes.mini.examples --out examples [--photo chelsea.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from fastvlm_recipes.demo_data.emoji import draw_emoji
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.shapes import draw_shapes
from fastvlm_recipes.demo_data.text import draw_grid, draw_word

PHOTO_SIDE = 512
EXAMPLES: dict[str, Callable[[Random], Scene]] = {
    "red_star": lambda rng: draw_shapes(rng, 1, (("red", "star"),)),
    "shapes": lambda rng: draw_shapes(rng, 3),
    "five_shapes": lambda rng: draw_shapes(rng, 5),
    "letter": lambda rng: draw_word(rng, "test", "K", "letter"),
    "word": lambda rng: draw_word(rng, "test", "OAK"),
    "letters": lambda rng: draw_grid(rng, "test", 2, 2),
    "animal": lambda rng: draw_emoji(rng, ("noto",), 1),
    "objects": lambda rng: draw_emoji(rng, ("noto",), 2),
}


def shrunk(photo: Image.Image) -> Image.Image:
    """At most PHOTO_SIDE px wide and high."""
    small = photo.convert("RGB")
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    return small


def main() -> None:
    """Write every example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples"))
    parser.add_argument("--photo", type=Path, help="scikit-image's chelsea.png")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, make in EXAMPLES.items():
        make(Random(f"example:{name}:{args.seed}")).image.save(args.out / f"{name}.png", optimize=True)
    if args.photo is not None:
        with Image.open(args.photo) as photo:
            shrunk(photo).save(args.out / "cat_photo.png", optimize=True)


if __name__ == "__main__":
    main()
