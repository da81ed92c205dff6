"""A result as a figure: bars of the medians with their range, one panel a measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.bench.plan import MEASURES
from fastvlm.plots import COLORS, figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR_INCHES, _PANEL_INCHES = 0.25, 0.45  # of each bar; of a panel without its bars
_OURS, _THEIRS = COLORS[0], COLORS[-1]


def save_plot(result: dict[str, Any], file: Path) -> None:
    """Draw `result` to `file`, an .svg or a .png. Raises as :func:`fastvlm.plots.figure_file`."""
    card = result["environment"]
    title = (
        f"{result['model']['name']}, {card['cpu']}, {card['threads']} threads: "
        f"medians and range of {result['rounds']} rounds"
    )
    panels = {name: [entry for entry in result["measures"] if entry["measure"] == name] for name in MEASURES}
    panels = {name: entries for name, entries in panels.items() if entries}
    heights = [_PANEL_INCHES + _BAR_INCHES * len(entries) for entries in panels.values()]
    with figure_file(file, title, heights) as all_axes:
        for axes, (name, entries) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, name, entries)


def _draw_panel(axes: Axes, name: str, entries: list[dict[str, Any]]) -> None:
    """One bar for each entry of a measure, the first on top."""
    unit, scale = ("MB", 1e-6) if MEASURES[name].unit == "bytes" else (MEASURES[name].unit, 1.0)
    axes.set_title(
        f"{name} ({unit}; {'more' if MEASURES[name].is_more_better else 'less'} is better)", loc="left", fontsize=9
    )
    medians = [entry["median"] * scale for entry in entries]
    ranges = [[side * scale for side in entry["range"]] for entry in entries]
    # From the median down to the lowest and up to the highest round.
    errors = [
        [median - low for median, (low, _) in zip(medians, ranges, strict=True)],
        [high - median for median, (_, high) in zip(medians, ranges, strict=True)],
    ]
    colors = [_OURS if entry["contestant"].startswith("fastvlm") else _THEIRS for entry in entries]
    axes.barh(range(len(entries)), medians, xerr=errors, color=colors, tick_label=[_label(entry) for entry in entries])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    for row, (median, (_, high)) in enumerate(zip(medians, ranges, strict=True)):
        number = f"{median:.0f}" if median >= 100 else f"{median:.3g}"
        axes.annotate(number, (high, row), xytext=(6, 0), textcoords="offset points", va="center")


def _label(entry: dict[str, Any]) -> str:
    case = " ".join(f"{value}{' px' if key == 'side_px' else 'x'}" for key, value in entry["case"].items())
    return f"{entry['contestant']} {case}".strip()
