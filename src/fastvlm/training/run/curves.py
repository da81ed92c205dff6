"""The curves of a run as one figure: loss, learning rates, gradient norm, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvlm.plots import COLORS, figure_file

_PANEL_INCHES = 1.7
_RAW_LOSS = "each log line"
Points = list[tuple[float, float]]  # (step, value), in the order of the steps


def curves_of(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """The curves in a run's log.jsonl, by panel and name."""
    losses = _series(log, "loss")
    rates = [(line["step"], line["lr"]) for line in log if "lr" in line]
    parts = dict.fromkeys(part for _, by_part in rates for part in by_part)
    panels = {
        "loss": {_RAW_LOSS: losses, "smoothed": smoothed(losses), "held-out samples": _series(log, "eval_loss")},
        "learning rate": {part: [(step, lr[part]) for step, lr in rates if part in lr] for part in parts},
        "gradient norm": {"before clipping": _series(log, "grad_norm")},
        "images per second": {"all processes": _series(log, "images_per_s")},
    }
    found = {panel: {name: points for name, points in own.items() if points} for panel, own in panels.items()}
    return {panel: own for panel, own in found.items() if own}


def _series(log: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(line["step"], line[key]) for line in log if key in line]


def smoothed(points: Points, keep: float = 0.9) -> Points:
    """An exponential average that begins at the first value."""
    result: Points = []
    for step, value in points:
        result.append((step, keep * result[-1][1] + (1 - keep) * value if result else value))
    return result


def draw_curves(log: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Write the figure, one panel below the other, with the same steps. Raises MissingExtraError."""
    panels = curves_of(log)
    with figure_file(file, title, [_PANEL_INCHES] * len(panels)) as all_axes:
        for (panel, own), axes in zip(panels.items(), all_axes, strict=True):
            for (name, points), color in zip(own.items(), COLORS, strict=False):
                steps, values = zip(*points, strict=True)
                marker, alpha = "." if len(steps) == 1 else "", 0.35 if name == _RAW_LOSS else 1.0
                axes.plot(steps, values, marker=marker, color=color, alpha=alpha, label=name)
            axes.set_title(panel, loc="left", fontsize=9)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.legend(loc="upper right", edgecolor="none")
            axes.grid(visible=True, color="#dddddd")
