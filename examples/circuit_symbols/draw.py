"""Draws circuit symbols with a question about each: a small data set of a kind that the mini has never seen.

    python examples/circuit_symbols/draw.py circuits

writes ``circuits/train.jsonl`` (conversations in LLaVA's format, for `fastvlm train`), ``circuits/questions.jsonl``
(for `fastvlm eval --task plain`) and the images of both. The held-out images have ink, paper and line widths that
no training image has. The same seed draws the same images.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

SIZE = 256  # px, of the side
Point = tuple[float, float]
Line = list[Point]  # in units of the symbol: x from -1 to 1 along its leads, y across
QUESTIONS = ("Which component is this?", "What is this symbol?", "Name the component.")
SEEN = {
    "ink": ["#000000", "#1f3a93", "#5b2c0f"],
    "paper": ["#ffffff", "#f7f3e3", "#eef4fb"],
    "width": [3, 4, 6],
}
UNSEEN = {"ink": ["#8b0000", "#0b5345"], "paper": ["#fdebd0", "#e8e8e8"], "width": [5]}


def arc(x: float, y: float, radius: float, start: float = 0.0, end: float = 360.0) -> Line:
    """Part of a circle, from `start` to `end` degrees."""
    angles = (math.radians(start + (end - start) * step / 24) for step in range(25))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def leads(inner: float) -> list[Line]:
    """The wires on both sides, from `inner` outwards."""
    return [[(-1, 0), (-inner, 0)], [(inner, 0), (1, 0)]]


def resistor() -> list[Line]:
    """A zigzag."""
    teeth = [(-0.5 + step / 6, 0.25 * (-1) ** step) for step in range(1, 6)]
    return [[(-1, 0), (-0.5, 0), *teeth, (0.5, 0), (1, 0)]]


def capacitor() -> list[Line]:
    """Two plates."""
    return [*leads(0.1), [(-0.1, -0.45), (-0.1, 0.45)], [(0.1, -0.45), (0.1, 0.45)]]


def battery() -> list[Line]:
    """Long and short plates in turn."""
    plates = [[(x, -height), (x, height)] for x, height in ((-0.24, 0.45), (-0.08, 0.2), (0.08, 0.45), (0.24, 0.2))]
    return [*leads(0.24), *plates]


def coil() -> list[Line]:
    """Four bows."""
    return [*leads(0.6), *[arc(x, 0, 0.15, 180, 360) for x in (-0.45, -0.15, 0.15, 0.45)]]


def diode() -> list[Line]:
    """A triangle against a bar."""
    return [*leads(0.3), [(-0.3, -0.35), (-0.3, 0.35), (0.3, 0), (-0.3, -0.35)], [(0.3, -0.35), (0.3, 0.35)]]


def lamp() -> list[Line]:
    """A circle with a cross."""
    d = 0.4 * math.sqrt(0.5)
    return [*leads(0.4), arc(0, 0, 0.4), [(-d, -d), (d, d)], [(-d, d), (d, -d)]]


def switch() -> list[Line]:
    """A lever that is open."""
    return [*leads(0.4), arc(-0.4, 0, 0.05), arc(0.4, 0, 0.05), [(-0.4, 0), (0.35, -0.4)]]


def fuse() -> list[Line]:
    """A box that the wire goes through."""
    return [[(-1, 0), (1, 0)], [(-0.5, -0.2), (0.5, -0.2), (0.5, 0.2), (-0.5, 0.2), (-0.5, -0.2)]]


SYMBOLS: dict[str, Callable[[], list[Line]]] = {
    symbol.__name__: symbol for symbol in (resistor, capacitor, battery, coil, diode, lamp, switch, fuse)
}


def draw(rng: Random, name: str, style: dict[str, list]) -> Image.Image:
    """The symbol `name` somewhere on a sheet, turned and scaled by chance."""
    image = Image.new("RGB", (SIZE, SIZE), rng.choice(style["paper"]))
    pen, ink, width = ImageDraw.Draw(image), rng.choice(style["ink"]), rng.choice(style["width"])
    scale, turn = rng.uniform(60, 110), math.radians(rng.choice((0, 90, 180, 270)) + rng.uniform(-12, 12))
    x, y = (SIZE / 2 + rng.uniform(-1, 1) * (SIZE / 2 - scale) * 0.8 for _ in range(2))
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    for line in SYMBOLS[name]():
        pen.line([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in line], ink, width, joint="curve")
    return image


def answer_of(name: str) -> str:
    """A short sentence, as the mini answers."""
    return f"A {name}."


def write(folder: Path, num_training: int, num_held_out: int, seed: int) -> None:
    """Both parts, with their images."""
    for part, count, style in (("train", num_training, SEEN), ("heldout", num_held_out, UNSEEN)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rng, lines = Random(f"{seed}:{part}"), []
        for number in range(count):
            name, question = rng.choice(list(SYMBOLS)), rng.choice(QUESTIONS)
            image = f"{part}/{number:04d}.png"
            draw(rng, name, style).save(folder / image)
            asked = {"from": "human", "value": f"<image>\n{question}"}
            told = {"from": "gpt", "value": answer_of(name)}
            plain = {"image": image, "question": question, "answers": [name], "test": "circuit_symbols"}
            lines.append({"image": image, "conversations": [asked, told]} if part == "train" else plain)
        file = folder / ("train.jsonl" if part == "train" else "questions.jsonl")
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--training", type=int, default=800, metavar="N", help="training images")
    parser.add_argument("--held-out", type=int, default=160, metavar="N", help="images to ask about")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.training, args.held_out, args.seed)


if __name__ == "__main__":
    main()
