"""The curves of a run as one SVG file: loss, learning rates, gradients, speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from fastvlm.storage.whole_files import write_file

__all__ = ["Curve", "curves_of", "draw_curves"]

_WIDTH, _HEIGHT, _LEFT, _GAP, _MOST_POINTS = 860, 150, 70, 44, 800
_COLORS = ("#1f6f8b", "#c2571a", "#5b8c2a", "#7b4b94")
_INK, _FAINT, _RULE = "#222222", "#777777", "#dddddd"


@dataclass(frozen=True)
class Curve:
    """One line of a panel: `points` are (step, value), in the order of the steps; `is_faint` for one behind others."""

    panel: str
    name: str
    points: Sequence[tuple[float, float]]
    is_faint: bool = False


def curves_of(log: Sequence[dict[str, Any]]) -> list[Curve]:
    """The curves in a run's log.jsonl: loss raw and smoothed, loss on samples put aside, rates, norms, speed."""
    losses = _series(log, "loss")
    found = [
        Curve("loss", "each line of the log", losses, is_faint=True),
        Curve("loss", "smoothed", smoothed(losses)),
        Curve("loss", "samples put aside", _series(log, "eval_loss")),
    ]
    rates = [line for line in log if "lr" in line]
    for part in dict.fromkeys(part for line in rates for part in line["lr"]):
        points = [(line["step"], line["lr"][part]) for line in rates if part in line["lr"]]
        found.append(Curve("learning rate", part, points))
    found.append(Curve("norm of the gradients", "before clipping", _series(log, "grad_norm")))
    found.append(Curve("images a second", "all processes", _series(log, "images_per_s")))
    return [curve for curve in found if curve.points]


def _series(log: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if key in line]


def smoothed(points: Sequence[tuple[float, float]], keep: float = 0.9) -> list[tuple[float, float]]:
    """An exponential average that begins at the first value."""
    result: list[tuple[float, float]] = []
    for step, value in points:
        result.append((step, keep * result[-1][1] + (1 - keep) * value if result else value))
    return result


def draw_curves(log: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Write the SVG: one panel below the other, all over the same steps."""
    curves = curves_of(log)
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    height = 40 + len(panels) * (_HEIGHT + _GAP)
    size = f'width="{_WIDTH}" height="{height}"'
    view = f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>',
        f'<rect {size} fill="white"/>',
        _text(20, 24, title, size=15),
    ]
    for number, panel in enumerate(panels):
        own = [curve for curve in curves if curve.panel == panel]
        lines += _panel(panel, own, top=40 + number * (_HEIGHT + _GAP) + 24)
    write_file(file, "\n".join([*lines, "</svg>"]) + "\n")


def _panel(title: str, curves: Sequence[Curve], top: float) -> Iterator[str]:
    yield _text(20, top - 8, title)
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    first, last = min(steps), max(*steps, min(steps) + 1)
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - 20)
        return x, top + _HEIGHT * (1 - (value - low) / (high - low))

    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = place(first, value)[1]
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 20}" stroke="{_RULE}"/>'
        yield _text(_LEFT - 8, y + 4, f"{value:.3g}", anchor="end", color=_FAINT)
    yield _text(_LEFT, top + _HEIGHT + 14, f"step {first:g}", color=_FAINT)
    yield _text(_WIDTH - 20, top + _HEIGHT + 14, f"{last:g}", anchor="end", color=_FAINT)
    for number, curve in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in thinned(curve.points)))
        style = 'stroke-opacity="0.35"' if curve.is_faint else 'stroke-width="1.5"'
        yield f'<path d="M{path}" fill="none" stroke="{color}" {style}/>'
        yield _text(_WIDTH - 20 - 150 * (len(curves) - 1 - number), top - 8, curve.name, anchor="end", color=color)


def thinned(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points, evenly taken, the last one among them."""
    every = max(1, len(points) // most)
    return [*points[:-1:every], points[-1]]


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", color: str = _INK) -> str:
    style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
