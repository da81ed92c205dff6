"""Images of bar charts with two to five bars, vertical or horizontal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from fastvlm_recipes.demo_data.canvas import RGB, SIZE, are_distinct, jittered
from fastvlm_recipes.demo_data.chart_tables import make_labels, make_title, make_values
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.lettering import Face, Setting, fitting_size, pick_face, set_run, write
from fastvlm_recipes.demo_data.scene import Chart, Scene
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, COLORS

Box = tuple[float, float, float, float]  # left, top, right, bottom
Painter = Callable[[Image.Image, Box, RGB, RGB], None]  # image, bar, its color, the ink
SEEN_STYLES = (
    "flat", "grid", "colors", "dark", "outlined", "hollow", "dotted", "striped", "ruled", "checkered",
)  # fmt: skip
HELD_OUT_STYLE = "hatched"  # frozen: never drawn in training
INKS = ("black", "white")


@dataclass(frozen=True)
class Plan:
    """How a chart is drawn: paper, ink, font of its texts, orientation of its bars, largest font size in px."""

    chart: Chart
    paper: RGB
    ink: tuple[str, RGB]
    face: Face
    is_vertical: bool
    largest_px: int


def draw_chart(rng: Random, split: Split, style: str | None = None) -> Scene:
    """A bar chart; a random `style` if None: a seen one in training, the held-out one otherwise."""
    if style is None:
        style = rng.choice(SEEN_STYLES) if split == "train" else HELD_OUT_STYLE
    plan = _plan(rng, split, style)
    scene = Scene(Image.new("RGB", (SIZE, SIZE), plan.paper), "chart", chart=plan.chart)
    area = _plot_area(rng, scene, plan)
    bars = _bars(rng, plan, area)
    if style == "grid":
        _grid_lines(scene, plan, area)
    pen = ImageDraw.Draw(scene.image)
    for box, color in zip(bars, plan.chart.colors, strict=True):
        PAINTERS[style](scene.image, box, jittered(rng, color), plan.ink[1])
    if rng.random() < 0.7 or style == "grid":
        corner = (area[0], area[3])
        pen.line((*corner, *((area[2], area[3]) if plan.is_vertical else (area[0], area[1]))), plan.ink[1], 2)
    for index, box in enumerate(bars):
        _write_label(scene, plan, index, box, area)
        if plan.chart.has_values:
            _write_value(scene, plan, index, box)
    return scene


def _plan(rng: Random, split: Split, style: str) -> Plan:
    count = rng.choices((2, 3, 4, 5), (22, 32, 28, 18))[0]
    is_dark = style == "dark"
    shade = rng.randint(10, 60) if is_dark else rng.randint(228, 255)
    paper: RGB = (shade, shade, min(255, shade + rng.choice((0, 0, 12)))) if rng.random() < 0.7 else (shade,) * 3
    seen = [name for name in COLOR_NAMES if name not in INKS and are_distinct(COLORS[name], paper)]
    is_colorful = style == "colors" or rng.random() < 0.25
    colors = tuple(rng.sample(seen, count)) if is_colorful else (rng.choice(seen),) * count
    face = pick_face(rng, split)
    labels, title = make_labels(rng, split, count), make_title(rng, split)
    if face.is_capitals_only:
        labels, title = tuple(label.upper() for label in labels), title.upper()
    if len(set(labels)) < count:  # differ only by case
        labels = tuple("ABCDE"[:count])
    has_values = rng.random() < 0.65
    chart = Chart(title, labels, make_values(rng, count), colors, has_values, style)
    ink = "white" if is_dark else "black"
    return Plan(chart, paper, (ink, jittered(rng, ink)), face, rng.random() < 0.6, rng.randint(19, 27))


def _plot_area(rng: Random, scene: Scene, plan: Plan) -> Box:
    """Write the title; return the area that title and labels leave for the bars."""
    top = float(rng.randint(8, 14))
    if plan.chart.title:
        size = min(fitting_size(plan.chart.title, plan.face, 220, 30), rng.randint(24, 36))
        run = set_run(plan.chart.title, Setting(plan.face, size))
        write(scene, run, plan.chart.title, plan.ink, (SIZE - run.mask.width) // 2, 5)
        top = run.mask.height + 12.0
    room = plan.largest_px + 8.0
    if plan.is_vertical:
        return (
            rng.randint(8, 24),
            top + (room if plan.chart.has_values else 0),
            SIZE - rng.randint(6, 20),
            SIZE - room,
        )
    widest = max(_label_run_width(label, plan) for label in plan.chart.labels)
    value_room = 2.0 * plan.largest_px + 6 if plan.chart.has_values else rng.randint(6, 20)
    return (widest + 12.0, top, SIZE - value_room, SIZE - float(rng.randint(6, 16)))


def _label_run_width(label: str, plan: Plan) -> int:
    return set_run(label, Setting(plan.face, _label_size(plan))).mask.width


def _label_size(plan: Plan) -> int:
    """px per em of all labels: they fit a bar's share of the width if bars are vertical, 84 px if horizontal."""
    count = len(plan.chart.labels)
    width = (SIZE - 40) / count * 0.92 if plan.is_vertical else 84
    height = plan.largest_px if plan.is_vertical else min(plan.largest_px, 200 / count * 0.6)
    return min(plan.largest_px + 4, *(fitting_size(label, plan.face, width, height) for label in plan.chart.labels))


def _bars(rng: Random, plan: Plan, area: Box) -> list[Box]:
    """Boxes of the bars, from the left or from the top; their lengths are proportional to the values."""
    left, top, right, bottom = area
    values = plan.chart.values
    slot = ((right - left) if plan.is_vertical else (bottom - top)) / len(values)
    thickness = slot * rng.uniform(0.5, 0.85)
    length = ((bottom - top) if plan.is_vertical else (right - left)) * rng.uniform(0.85, 1.0) / max(values)
    boxes: list[Box] = []
    for index, value in enumerate(values):
        middle = slot * (index + 0.5)
        if plan.is_vertical:
            x = left + middle
            boxes.append((x - thickness / 2, bottom - max(2.0, value * length), x + thickness / 2, bottom))
        else:
            y = top + middle
            boxes.append((left, y - thickness / 2, left + max(2.0, value * length), y + thickness / 2))
    return boxes


def _grid_lines(scene: Scene, plan: Plan, area: Box) -> None:
    left, top, right, bottom = area
    pen = ImageDraw.Draw(scene.image)
    faint: RGB = (200, 200, 205)
    for step in range(1, 5):
        if plan.is_vertical:
            y = bottom - (bottom - top) * step / 4
            pen.line((left, y, right, y), faint, 1)
        else:
            x = left + (right - left) * step / 4
            pen.line((x, top, x, bottom), faint, 1)


def _flat(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
    ImageDraw.Draw(image).rectangle(box, fill=color)


def _outlined(image: Image.Image, box: Box, color: RGB, ink: RGB) -> None:
    ImageDraw.Draw(image).rectangle(box, fill=color, outline=ink, width=2)


def _hollow(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
    ImageDraw.Draw(image).rectangle(box, outline=color, width=4)


def _dotted(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
    """Dots within a border, without a fill."""
    left, top, right, bottom = (round(edge) for edge in box)
    pen = ImageDraw.Draw(image)
    for y in range(top + 4, bottom - 3, 8):
        for x in range(left + 4, right - 3, 8):
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=2)


def _lined(*, is_horizontal: bool, pitch_px: int, line_px: int, border_px: int) -> Painter:
    """Horizontal or vertical lines within a border, without a fill."""

    def paint(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
        left, top, right, bottom = (round(edge) for edge in box)
        pen = ImageDraw.Draw(image)
        first, last = (top, bottom) if is_horizontal else (left, right)
        for at in range(first + 6, last, pitch_px):
            pen.line((left, at, right, at) if is_horizontal else (at, top, at, bottom), fill=color, width=line_px)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=border_px)

    return paint


def _checkered(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
    """A checkerboard without a border."""
    left, top, right, bottom = (round(edge) for edge in box)
    pen = ImageDraw.Draw(image)
    for row, y in enumerate(range(bottom, top, -7)):
        for x in range(left + 7 * (row % 2), right, 14):
            pen.rectangle((x, max(top, y - 6), min(x + 6, right), y), fill=color)


def _hatched(image: Image.Image, box: Box, color: RGB, _ink: RGB) -> None:
    """Slanted lines within a border, without a fill."""
    left, top, right, bottom = (round(edge) for edge in box)
    mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    pen = ImageDraw.Draw(mask)
    for start in range(-mask.height, mask.width, 9):
        pen.line((start, mask.height, start + mask.height, 0), 255, 3)
    pen.rectangle((0, 0, mask.width - 1, mask.height - 1), outline=255, width=3)
    image.paste(color, (left, top), mask)


PAINTERS: dict[str, Painter] = {
    "flat": _flat,
    "grid": _flat,
    "colors": _flat,
    "dark": _flat,
    "outlined": _outlined,
    "hollow": _hollow,
    "dotted": _dotted,
    "striped": _lined(is_horizontal=True, pitch_px=9, line_px=3, border_px=2),
    "ruled": _lined(is_horizontal=False, pitch_px=8, line_px=2, border_px=3),
    "checkered": _checkered,
    "hatched": _hatched,
}


def _write_label(scene: Scene, plan: Plan, index: int, box: Box, area: Box) -> None:
    """Write the bar's name below it, or left of it."""
    label = plan.chart.labels[index]
    run = set_run(label, Setting(plan.face, _label_size(plan)))
    if plan.is_vertical:
        corner = ((box[0] + box[2] - run.mask.width) / 2, area[3] + 3)
    else:
        corner = (area[0] - 6 - run.mask.width, (box[1] + box[3] - run.mask.height) / 2)
    write(scene, run, label, plan.ink, max(0, round(corner[0])), min(SIZE - run.mask.height, round(corner[1])))


def _write_value(scene: Scene, plan: Plan, index: int, box: Box) -> None:
    """Write the bar's number at its end."""
    text = str(plan.chart.values[index])
    run = set_run(
        text, Setting(plan.face, min(fitting_size(text, plan.face, 46, plan.largest_px - 2), plan.largest_px))
    )
    if plan.is_vertical:
        corner = ((box[0] + box[2] - run.mask.width) / 2, box[1] - run.mask.height - 1)
    else:
        corner = (box[2] + 3, (box[1] + box[3] - run.mask.height) / 2)
    write(scene, run, text, plan.ink, min(SIZE - run.mask.width, round(corner[0])), max(0, round(corner[1])))
