"""Renders a run of characters in a font and locates each character's ink."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from fastvlm_recipes.demo_data.canvas import RGB, SIZE, paste
from fastvlm_recipes.demo_data.fonts import Split, families, is_capitals_only, load
from fastvlm_recipes.demo_data.scene import Line, Scene, Thing
from fastvlm_recipes.demo_data.vocabulary import GLYPHS

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Face:
    """A font file; `is_capitals_only` where small letters look like capitals."""

    file: str
    is_capitals_only: bool


@dataclass(frozen=True)
class Setting:
    """How a run is rendered: px per em, extra px between characters, degrees counter-clockwise, stroke px."""

    face: Face
    size: int
    spacing: float = 0.0
    angle: float = 0.0
    stroke: int = 0


def pick_face(rng: Random, split: Split) -> Face:
    """A random face of a random family, so that large families do not outweigh the others."""
    table = families(split)
    files = table[rng.choice(sorted(table))]
    file = rng.choice(files) if files else ""
    return Face(file, is_capitals_only(file))


@dataclass(frozen=True)
class Run:
    """A rendered run: its mask (L) and, per character, ink center and ink size within the mask."""

    mask: Image.Image
    centers: tuple[tuple[float, float], ...]
    sizes: tuple[float, ...]
    ink_height: float


@lru_cache(maxsize=40_000)
def _char_width(file: str, size: int, char: str) -> float:
    return float(load(file, size).getlength(char))


@lru_cache(maxsize=40_000)
def _char_box(file: str, size: int, char: str) -> tuple[float, float, float, float]:
    return load(file, size).getbbox(char, anchor="ls")


def _pens(text: str, setting: Setting, font: Font) -> list[float]:
    """Where each character starts, in px: its neighbors' own widths, scaled to the kerned width of the whole."""
    widths = [_char_width(setting.face.file, setting.size, char) for char in text]
    kerning = 1.0 if setting.spacing else float(font.getlength(text)) / max(1e-6, sum(widths))
    pens, pen = [], 0.0
    for width in widths:
        pens.append(pen)
        pen += width * kerning + setting.spacing
    return pens


def set_run(text: str, setting: Setting) -> Run:
    """Draw `text` in white on black, cut to its ink with a margin of 2 px (before turning)."""
    font = load(setting.face.file, setting.size)
    pens = _pens(text, setting, font)
    boxes = [_char_box(setting.face.file, setting.size, char) for char in text]
    margin = 2 + setting.stroke
    left = min(pen + box[0] for pen, box in zip(pens, boxes, strict=True)) - margin
    right = max(pen + box[2] for pen, box in zip(pens, boxes, strict=True)) + margin
    top = min(box[1] for box in boxes) - margin
    bottom = max(box[3] for box in boxes) + margin
    mask = Image.new("L", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
    pencil = ImageDraw.Draw(mask)
    if setting.spacing:
        for char, pen in zip(text, pens, strict=True):
            pencil.text((pen - left, -top), char, 255, font, anchor="ls", stroke_width=setting.stroke)
    else:
        pencil.text((-left, -top), text, 255, font, anchor="ls", stroke_width=setting.stroke)
    centers = tuple(
        (pen + (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top) for pen, box in zip(pens, boxes, strict=True)
    )
    sizes = tuple(float(max(box[2] - box[0], box[3] - box[1])) for box in boxes)
    run = Run(mask, centers, sizes, float(bottom - top - 2 * margin))
    return _turned(run, setting.angle) if setting.angle else run


def _turned(run: Run, angle: float) -> Run:
    """The run rotated around its center by `angle` degrees counter-clockwise."""
    mask = run.mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    half_w, half_h = run.mask.width / 2, run.mask.height / 2
    centers = tuple(
        (
            mask.width / 2 + (x - half_w) * cos + (y - half_h) * sin,
            mask.height / 2 - (x - half_w) * sin + (y - half_h) * cos,
        )
        for x, y in run.centers
    )
    return Run(mask, centers, run.sizes, run.ink_height)


def write(scene: Scene, run: Run, text: str, ink: tuple[str, RGB], left: int, top: int) -> None:
    """Paste a run at (left, top) and record its line and its characters (except spaces)."""
    color, rgb = ink
    paste(scene.image, run.mask, rgb, left, top)
    for char, (x, y), size in zip(text, run.centers, run.sizes, strict=True):
        if char in GLYPHS:
            scene.things.append(Thing("glyph", char, color, left + x, top + y, size))
    middle = (left + run.mask.width / 2, top + run.mask.height / 2)
    scene.lines.append(Line(text, color, *middle, run.ink_height))


def fitting_size(text: str, face: Face, width: float, height: float) -> int:
    """Largest px per em at which `text` stays within width x height px (at least 9)."""
    trial = load(face.file, 64)
    box = trial.getbbox(text, anchor="ls")
    scale = min(width / max(1.0, box[2] - box[0]), height / max(1.0, box[3] - box[1]))
    return max(9, min(300, int(64 * scale)))


def place_run(rng: Random, run: Run) -> tuple[int, int]:
    """A random top left corner that keeps the run inside the image if it fits."""
    return rng.randint(0, max(0, SIZE - run.mask.width)), rng.randint(0, max(0, SIZE - run.mask.height))
