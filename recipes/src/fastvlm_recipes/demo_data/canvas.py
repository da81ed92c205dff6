"""Backgrounds, colors and the pasting of masks. All images are SIZE x SIZE RGB."""

from __future__ import annotations

import io
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, COLORS

SIZE = 256  # px; training resizes to 512: letters of 20 px become 40 px high
RGB = tuple[int, int, int]


def jittered(rng: Random, color: str, spread: int = 14) -> RGB:
    """A shade of the named color; black, white and gray stay neutral so that they keep their names."""
    red, green, blue = COLORS[color]
    if color in ("black", "white", "gray"):
        shift = rng.randint(-spread, spread)
        offsets = (shift, shift, shift)
    else:
        offsets = (rng.randint(-spread, spread), rng.randint(-spread, spread), rng.randint(-spread, spread))
    first, second, third = (min(255, max(0, base + off)) for base, off in zip((red, green, blue), offsets, strict=True))
    return first, second, third


def luma(color: RGB) -> float:
    """Perceived brightness, 0 to 255 (ITU-R BT.601 weights)."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def are_distinct(first: RGB, second: RGB, least: float = 60.0) -> bool:
    """Whether ink of one color is visible on the other."""
    gap = abs(luma(first) - luma(second))
    return gap + 0.35 * sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 3 > least


def contrasting(rng: Random, background: RGB, excluded: frozenset[str] = frozenset()) -> str:
    """Name of a color that is visible on `background`."""
    names = [name for name in COLOR_NAMES if name not in excluded and are_distinct(COLORS[name], background)]
    return rng.choice(names) if names else ("black" if luma(background) > 127 else "white")


def _random_tint(rng: Random) -> tuple[RGB, str]:
    """A plain background: mostly white or pale, sometimes a full named color, sometimes dark."""
    roll = rng.random()
    if roll < 0.35:
        return (255, 255, 255), "white"
    if roll < 0.6:
        base = rng.randint(205, 250)
        red, green, blue = (min(255, max(0, base + rng.randint(-22, 22))) for _ in range(3))
        return (red, green, blue), ""
    if roll < 0.75:
        base = rng.randint(0, 50)
        red, green, blue = (max(0, base + rng.randint(-15, 25)) for _ in range(3))
        return (red, green, blue), ""
    name = rng.choice(COLOR_NAMES)
    return jittered(rng, name), name


def background(rng: Random) -> tuple[Image.Image, RGB, str]:
    """A background image, its mean color, and the color's name where it has one ("" otherwise)."""
    tint, name = _random_tint(rng)
    roll = rng.random()
    if roll < 0.62:
        return Image.new("RGB", (SIZE, SIZE), tint), tint, name
    if roll < 0.8:
        return _gradient(rng, tint), tint, ""
    if roll < 0.9:
        return _noise(rng, tint), tint, ""
    return _stripes(rng, tint), tint, ""


def _near(rng: Random, tint: RGB, spread: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in tint)
    return red, green, blue


def _gradient(rng: Random, tint: RGB) -> Image.Image:
    ramp = np.linspace(0.0, 1.0, SIZE, dtype=np.float32)[:, None]
    first, second = np.array(_near(rng, tint, 28)), np.array(_near(rng, tint, 28))
    column = (first * (1 - ramp) + second * ramp).astype(np.uint8)[:, None, :]
    image = np.broadcast_to(column, (SIZE, SIZE, 3))
    return Image.fromarray(np.ascontiguousarray(image if rng.random() < 0.5 else image.transpose(1, 0, 2)))


def _noise(rng: Random, tint: RGB) -> Image.Image:
    grain = rng.choice((SIZE, 64, 32))
    numbers = np.random.default_rng(rng.getrandbits(32))
    noise = numbers.integers(-16, 17, (grain, grain, 3), dtype=np.int16) + np.array(tint, dtype=np.int16)
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    return image if grain == SIZE else image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _stripes(rng: Random, tint: RGB) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), tint)
    pen = ImageDraw.Draw(image)
    other, step, is_upright = _near(rng, tint, 20), rng.randint(6, 40), rng.random() < 0.5
    for start in range(0, SIZE, 2 * step):
        box = (start, 0, start + step - 1, SIZE) if is_upright else (0, start, SIZE, start + step - 1)
        pen.rectangle(box, fill=other)
    return image


def paste(image: Image.Image, mask: Image.Image, color: RGB, left: int, top: int) -> None:
    """Color `image` through the L-mode `mask` whose corner is at (left, top)."""
    image.paste(color, (left, top, left + mask.width, top + mask.height), mask)


def degraded(rng: Random, image: Image.Image) -> Image.Image:
    """In 12 % of cases with JPEG artifacts or resized down and up again."""
    roll = rng.random()
    if roll < 0.08:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(35, 90))
        return Image.open(buffer).convert("RGB")
    if roll < 0.12:
        side = rng.randint(140, 220)
        return image.resize((side, side), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return image
