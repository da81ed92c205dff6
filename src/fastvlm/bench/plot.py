"""A result as an image: bars of the medians with their range, one panel a measure. SVG by hand, PNG through Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from fastvlm.bench.plan import MEASURES
from fastvlm.errors import UsageError
from fastvlm.storage.whole_files import write_file

__all__ = ["ENDINGS", "Bar", "Line", "Text", "check_plot_name", "drawing", "save_plot"]

ENDINGS = (".svg", ".png")
_WIDTH, _LABELS, _VALUES, _BAR, _STEP, _TITLE, _MARGIN = 860, 230, 150, 16, 24, 40, 20
_OURS, _THEIRS, _INK, _FAINT = "#1f6f8b", "#b9b4a7", "#222222", "#777777"
_PNG_SCALE = 2


@dataclass(frozen=True)
class Bar:
    """A filled rectangle; pixels."""

    x: float
    y: float
    width: float
    height: float
    color: str


@dataclass(frozen=True)
class Line:
    """A horizontal line; pixels."""

    x: float
    y: float
    width: float
    color: str


@dataclass(frozen=True)
class Text:
    """One line of text, `y` its middle; `anchor` "start" or "end"."""

    x: float
    y: float
    words: str
    size: int
    color: str
    anchor: str = "start"


Shape = Bar | Line | Text


def check_plot_name(file: Path) -> None:
    """Raise UsageError unless the file's ending is one that can be drawn."""
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot is {str(file)!r}; expected a file that ends in .svg or .png.")


def save_plot(result: dict[str, Any], file: Path) -> None:
    """Draw `result` to `file`, an .svg or a .png.

    Raises:
        UsageError: another ending.
    """
    check_plot_name(file)
    shapes, height = drawing(result)
    if file.suffix.lower() == ".svg":
        write_file(file, _svg(shapes, height))
    else:
        content = io.BytesIO()
        _png(shapes, height).save(content, "PNG")
        write_file(file, content.getvalue())


def drawing(result: dict[str, Any]) -> tuple[list[Shape], int]:
    """The shapes, and the image's height in pixels (its width is fixed)."""
    card = result["environment"]
    shapes: list[Shape] = [
        Text(_MARGIN, _MARGIN, f"{result['model']['name']}, {card['cpu']}, {card['threads']} threads", 15, _INK),
        Text(_MARGIN, _MARGIN + 20, f"medians and range of {result['rounds']} rounds", 12, _FAINT),
    ]
    y = _MARGIN + 30
    for name in MEASURES:
        found = [entry for entry in result["measures"] if entry["measure"] == name]
        if found:
            shapes += _panel(name, found, y)
            y += _TITLE + _STEP * len(found)
    return shapes, y + _MARGIN


def _panel(name: str, found: list[dict[str, Any]], top: int) -> Iterator[Shape]:
    unit, scale = ("MB", 1e-6) if MEASURES[name].unit == "bytes" else (MEASURES[name].unit, 1.0)
    better = "more is better" if MEASURES[name].is_more_better else "less is better"
    yield Text(_MARGIN, top + _TITLE / 2 + 4, f"{name} ({unit}; {better})", 13, _INK)
    longest = max(entry["range"][1] for entry in found) or 1.0
    per_unit = (_WIDTH - _LABELS - _VALUES - _MARGIN) / longest
    for index, entry in enumerate(found):
        y = top + _TITLE + index * _STEP
        case = " ".join(f"{value}{' px' if key == 'side_px' else 'x'}" for key, value in entry["case"].items())
        is_ours = entry["contestant"].startswith("fastvlm")
        low, high = entry["range"]
        middle = y + _BAR / 2
        yield Text(_LABELS - 8, middle, f"{entry['contestant']} {case}".strip(), 12, _INK, "end")
        yield Bar(_LABELS, y, entry["median"] * per_unit, _BAR, _OURS if is_ours else _THEIRS)
        yield Line(_LABELS + low * per_unit, middle, (high - low) * per_unit, _INK)
        yield Text(_LABELS + high * per_unit + 8, middle, f"{entry['median'] * scale:.3g}", 12, _INK)


def _svg(shapes: list[Shape], height: int) -> str:
    size = f'width="{_WIDTH}" height="{height}"'
    view = f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>',
        f'<rect {size} fill="white"/>',
        *map(_svg_shape, shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _svg_shape(shape: Shape) -> str:
    match shape:
        case Bar(x, y, width, height, color):
            return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'
        case Line(x, y, width, color):
            return f'<path d="M{x:.1f} {y:.1f}h{width:.1f}" stroke="{color}" stroke-width="1.5"/>'
        case Text(x, y, words, size, color, anchor):
            return (
                f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
                f'dominant-baseline="central">{escape(words)}</text>'
            )


def _png(shapes: list[Shape], height: int) -> Image.Image:
    k = _PNG_SCALE
    image = Image.new("RGB", (k * _WIDTH, k * height), "white")
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        match shape:
            case Bar(x, y, width, tall, color):
                draw.rectangle((k * x, k * y, k * (x + width), k * (y + tall)), fill=color)
            case Line(x, y, width, color):
                draw.line((k * x, k * y, k * (x + width), k * y), fill=color, width=3)
            case Text(x, y, words, size, color, anchor):
                place = "lm" if anchor == "start" else "rm"
                draw.text((k * x, k * y), words, fill=color, font=ImageFont.load_default(k * size), anchor=place)
    return image
