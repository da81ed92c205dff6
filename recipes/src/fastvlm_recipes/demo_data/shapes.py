"""Images of colored shapes."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw

from fastvlm_recipes.demo_data.canvas import SIZE, are_distinct, background, jittered, paste
from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, COLORS, HELD_OUT_PAIRS, SHAPE_NAMES

Point = tuple[float, float]
OVERSAMPLING = 2
# How often an image has 0, 1, ... 10 shapes.
SHAPES_PER_IMAGE = (1, 14, 20, 20, 17, 12, 12, 1, 1, 1, 1)
ALL_PAIRS: tuple[tuple[str, str], ...] = tuple((color, shape) for color in COLOR_NAMES for shape in SHAPE_NAMES)
TRAIN_PAIRS: tuple[tuple[str, str], ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)


def _regular(corners: int, start: float = -math.pi / 2, inner: float = 0.0) -> list[Point]:
    """Corners of a regular polygon (or star, with `inner` radius) in the unit circle."""
    count = corners * (2 if inner else 1)
    points = []
    for index in range(count):
        radius = inner if inner and index % 2 else 1.0
        angle = start + 2 * math.pi * index / count
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[Point]:
    points = []
    for index in range(32):
        angle = 2 * math.pi * index / 32
        across = 16 * math.sin(angle) ** 3
        up = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((across / 17, -(up + 2.5) / 17))
    return points


CROSS: list[Point] = [
    (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
    (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
]  # fmt: skip


@lru_cache(maxsize=64)
def outline(shape: str) -> tuple[Point, ...]:
    """The shape's corners around (0, 0), reaching about 1 from it."""
    table: dict[str, list[Point]] = {
        "circle": _regular(40),
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "rectangle": [(-1, -0.55), (1, -0.55), (1, 0.55), (-1, 0.55)],
        "triangle": _regular(3),
        "star": _regular(5, inner=0.42),
        "heart": _heart(),
        "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
        "pentagon": _regular(5),
        "hexagon": _regular(6, start=0.0),
        "cross": CROSS,
    }
    return tuple(table[shape])


def _turn(rng: Random, shape: str) -> float:
    """Rotation in radians: small, so that squares and diamonds differ."""
    if shape == "rectangle" and rng.random() < 0.35:
        return math.pi / 2
    if shape in ("triangle", "star", "pentagon", "hexagon") and rng.random() < 0.25:
        return rng.uniform(-math.pi, math.pi)
    return rng.gauss(0.0, 0.07)


def shape_mask(rng: Random, shape: str, radius: float) -> Image.Image:
    """The shape in white on black, L mode, about 2 * radius wide."""
    side = int(2 * radius) + 3
    big = side * OVERSAMPLING
    turn, stretch = _turn(rng, shape), 1.0
    if shape in ("rectangle", "triangle", "heart"):
        stretch = rng.uniform(0.78, 1.12)
    cos, sin = math.cos(turn), math.sin(turn)
    scale = radius * OVERSAMPLING
    points = [
        (big / 2 + scale * (x * cos - y * stretch * sin), big / 2 + scale * (x * sin + y * stretch * cos))
        for x, y in outline(shape)
    ]
    mask = Image.new("L", (big, big))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.reduce(OVERSAMPLING)


def is_free(spot: tuple[float, float, float], taken: list[tuple[float, float, float]], gap: float = 0.95) -> bool:
    """Whether a disc (x, y, radius) does not overlap the others."""
    x, y, radius = spot
    return all(math.hypot(x - a, y - b) > gap * (radius + r) for a, b, r in taken)


def find_spot(rng: Random, radius: float, taken: list[tuple[float, float, float]]) -> tuple[float, float] | None:
    """A free place for a disc inside the image, or None after some tries."""
    for _ in range(30):
        spot = (rng.uniform(radius, SIZE - radius), rng.uniform(radius, SIZE - radius))
        if is_free((*spot, radius), taken):
            return spot
    return None


def draw_shape(rng: Random, image: Image.Image, pair: tuple[str, str], x: float, y: float, radius: float) -> Thing:
    """Draw one shape and return its record."""
    color, shape = pair
    mask = shape_mask(rng, shape, radius)
    rgb = jittered(rng, color)
    left, top = round(x - mask.width / 2), round(y - mask.height / 2)
    if rng.random() < 0.12 and radius > 12:
        _rim(image, mask, rgb, left, top)
    else:
        paste(image, mask, rgb, left, top)
    return Thing("shape", shape, color, x, y, 2 * radius)


def _rim(image: Image.Image, mask: Image.Image, rgb: tuple[int, int, int], left: int, top: int) -> None:
    """A shape with a darker edge."""
    dark = (rgb[0] // 3, rgb[1] // 3, rgb[2] // 3)
    paste(image, mask, dark, left, top)
    inner = max(3, round(mask.width * 0.9))
    small = mask.resize((inner, inner), Image.Resampling.BILINEAR)
    shift = (mask.width - inner) // 2
    paste(image, small, rgb, left + shift, top + shift)


def _palette(rng: Random, ground: tuple[int, int, int], pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """The pairs that are visible on the background, sometimes reduced so that colors or shapes repeat."""
    seen = [pair for pair in pairs if are_distinct(COLORS[pair[0]], ground)]
    roll = rng.random()
    if roll < 0.3:
        shapes = set(rng.sample(SHAPE_NAMES, rng.choice((1, 2))))
        narrowed = [pair for pair in seen if pair[1] in shapes]
    elif roll < 0.5:
        colors = set(rng.sample(COLOR_NAMES, rng.choice((1, 2, 3))))
        narrowed = [pair for pair in seen if pair[0] in colors]
    else:
        narrowed = seen
    return narrowed or seen


def draw_shapes(rng: Random, count: int | None = None, pairs: tuple[tuple[str, str], ...] = TRAIN_PAIRS) -> Scene:
    """An image of `count` shapes (0 to 10 at random if None) that do not overlap."""
    image, ground, name = background(rng)
    scene = Scene(image, "shapes", name)
    if count is None:
        count = rng.choices(range(11), SHAPES_PER_IMAGE)[0]
    palette = _palette(rng, ground, pairs)
    largest = 100 if count == 1 else min(64.0, 118 / math.sqrt(max(count, 1)))
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        radius = max(11.0, largest * rng.uniform(0.3, 1.0) if count == 1 else largest * rng.uniform(0.42, 0.9))
        spot = find_spot(rng, radius, taken)
        if spot is None:
            continue
        taken.append((*spot, radius))
        scene.things.append(draw_shape(rng, image, rng.choice(palette), *spot, radius))
    return scene
