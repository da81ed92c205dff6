"""Images to read: single characters, words, lines, and grids of letters."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from fastvlm_recipes.demo_data import words
from fastvlm_recipes.demo_data.canvas import RGB, SIZE, are_distinct, background, contrasting, jittered
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.lettering import Face, Setting, fitting_size, pick_face, place_run, set_run, write
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, COLORS


def _angle(rng: Random, most: float = 10.0) -> float:
    """Rotation in degrees: 0 in half of the images."""
    return 0.0 if rng.random() < 0.5 else rng.uniform(-most, most)


def _shown(text: str, face: Face) -> str:
    """The text as the face shows it: some faces have no small letters."""
    return text.upper() if face.is_capitals_only else text


def _ink(rng: Random, ground: RGB) -> tuple[str, RGB]:
    color = "black" if rng.random() < 0.35 and are_distinct(COLORS["black"], ground) else contrasting(rng, ground)
    return color, jittered(rng, color)


def _stroke(rng: Random, size: int) -> int:
    return 1 if size > 36 and rng.random() < 0.15 else 0


def _board(rng: Random, scene: Scene) -> RGB:
    """A panel of another color over most of the image; returns its color."""
    color = rng.choice(COLOR_NAMES)
    rgb = jittered(rng, color)
    inset = rng.randint(4, 24)
    box = (inset, inset + rng.randint(0, 30), SIZE - inset, SIZE - inset - rng.randint(0, 30))
    ImageDraw.Draw(scene.image).rounded_rectangle(box, rng.choice((0, 12, 24)), fill=rgb)
    return rgb


def _start(rng: Random, topic: str) -> tuple[Scene, RGB]:
    image, ground, name = background(rng)
    scene = Scene(image, topic, name)
    if rng.random() < 0.12:
        ground = _board(rng, scene)
        scene.background = ""
    return scene, ground


def draw_word(rng: Random, split: Split, text: str, topic: str = "word", largest: float = 230.0) -> Scene:
    """One word (or character) alone, from small to filling the image."""
    scene, ground = _start(rng, topic)
    face = pick_face(rng, split)
    text = _shown(text, face)
    least = 60.0 if len(text) == 1 else min(90.0 + 16.0 * len(text), 200.0)
    room = rng.uniform(min(least, largest), largest)
    height = rng.uniform(34.0, 190.0) if len(text) == 1 else min(room, 150.0)
    size = fitting_size(text, face, room, height)
    spacing = rng.uniform(0.0, 0.25 * size) if len(text) > 1 and rng.random() < 0.25 else 0.0
    if spacing:
        size = max(9, int(size * room / (room + spacing * len(text))))
    run = set_run(text, Setting(face, size, spacing, _angle(rng), _stroke(rng, size)))
    write(scene, run, text, _ink(rng, ground), *place_run(rng, run))
    return scene


def draw_lines(rng: Random, split: Split, texts: list[str], topic: str = "lines") -> Scene:
    """Several words, one below the other, in one face; the size depends on their number."""
    scene, ground = _start(rng, topic)
    face = pick_face(rng, split)
    texts = [_shown(text, face) for text in texts]
    pitch = SIZE / len(texts)
    size = min(fitting_size(text, face, rng.uniform(150, 236), pitch * 0.72) for text in texts)
    is_centerd, margin = rng.random() < 0.5, rng.randint(4, 30)
    ink = _ink(rng, ground)
    for index, text in enumerate(texts):
        run = set_run(text, Setting(face, size))
        left = (SIZE - run.mask.width) // 2 if is_centerd else min(margin, SIZE - run.mask.width)
        top = round(pitch * (index + 0.5) - run.mask.height / 2)
        if rng.random() < 0.3:
            ink = _ink(rng, ground)
        write(scene, run, text, ink, max(0, left), max(0, top))
    return scene


def draw_grid(rng: Random, split: Split, columns: int, rows: int, length: int = 1) -> Scene:
    """Characters (or short words) in a regular grid, each with its own color; reading order is by rows."""
    scene, ground = _start(rng, "grid")
    face = pick_face(rng, split)
    cell_w, cell_h = SIZE / columns, SIZE / rows
    colors = [name for name in COLOR_NAMES if are_distinct(COLORS[name], ground)] or ["black"]
    rng.shuffle(colors)
    for index in range(columns * rows):
        text = _shown(words.token(rng, length), face)
        size = fitting_size(text, face, cell_w * rng.uniform(0.5, 0.82), cell_h * rng.uniform(0.4, 0.72))
        run = set_run(text, Setting(face, size, 0.0, _angle(rng, 8.0) if length == 1 else 0.0))
        color = colors[index % len(colors)]
        left = round(cell_w * (index % columns + 0.5) - run.mask.width / 2 + rng.uniform(-0.06, 0.06) * cell_w)
        top = round(cell_h * (index // columns + 0.5) - run.mask.height / 2 + rng.uniform(-0.06, 0.06) * cell_h)
        write(scene, run, text, (color, jittered(rng, color)), max(0, left), max(0, top))
    return scene
