"""The curves of a run as one figure: loss, learning rates, gradient norm, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.plots import COLORS, figure_file

_PANEL_INCHES = 1.7


@dataclass(frozen=True)
class Curve:
    """One line of a panel: `points` are (step, value), in the order of the steps; `is_faint` for one behind others."""

    panel: str
    name: str
    points: Sequence[tuple[float, float]]
    is_faint: bool = False


def curves_of(log: Sequence[dict[str, Any]]) -> list[Curve]:
    """The curves in a run's log.jsonl: loss raw and smoothed, loss on held-out samples, rates, norms, speed."""
    losses = _series(log, "loss")
    found = [
        Curve("loss", "each log line", losses, is_faint=True),
        Curve("loss", "smoothed", smoothed(losses)),
        Curve("loss", "held-out samples", _series(log, "eval_loss")),
    ]
    rates = [line for line in log if "lr" in line]
    for part in dict.fromkeys(part for line in rates for part in line["lr"]):
        points = [(line["step"], line["lr"][part]) for line in rates if part in line["lr"]]
        found.append(Curve("learning rate", part, points))
    found.append(Curve("gradient norm", "before clipping", _series(log, "grad_norm")))
    found.append(Curve("images per second", "all processes", _series(log, "images_per_s")))
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
    """Write the figure, one panel below the other, all over the same steps. Raises MissingExtraError."""
    curves = curves_of(log)
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    with figure_file(file, title, [_PANEL_INCHES] * len(panels)) as all_axes:
        for panel, axes in zip(panels, all_axes, strict=True):
            own = [curve for curve in curves if curve.panel == panel]
            for curve, color in zip(own, COLORS, strict=False):
                steps, values = zip(*curve.points, strict=True)
                marker, alpha = "." if len(steps) == 1 else "", 0.35 if curve.is_faint else 1.0
                axes.plot(steps, values, marker=marker, color=color, alpha=alpha, label=curve.name)
            axes.set_title(panel, loc="left", fontsize=9)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.legend(loc="upper right", edgecolor="none")
            axes.grid(visible=True, color="#dddddd")
