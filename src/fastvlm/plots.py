"""Figures as .svg and .png files, drawn by matplotlib, an optional package."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.storage.whole_files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
COLORS = ("#1f6f8b", "#c2571a", "#5b8c2a", "#7b4b94", "#b9b4a7")
_WIDTH_INCHES, _TITLE_INCHES = 9.0, 0.5
_STYLE: dict[Any, Any] = {  # matplotlib 3.11 types the keys as literals, 3.9 as str
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fastvlm",  # the same figure gives the same file
    "savefig.dpi": 150,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_plot_file(file: Path) -> None:
    """Raise UsageError unless the name ends in one of FORMATS, and MissingExtraError without matplotlib."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"Got {str(file)!r} as the file of a figure; expected a name that ends in .svg or .png.")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415  # only where something is drawn
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", f"Drawing {file.name}") from error


@contextmanager
def figure_file(file: Path, title: str, heights_inches: Sequence[float]) -> Iterator[list[Axes]]:
    """Panels one below the other; what is drawn on them in the block is written to `file` at its end.

    Args:
        file: an .svg or a .png; its folder exists.
        title: one line above all panels.
        heights_inches: of each panel, without its title and labels; the width is always the same.

    Raises:
        UsageError: another ending.
        MissingExtraError: matplotlib is not installed.
        StorageError: the disk is full or failed.
    """
    check_plot_file(file)
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415  # unlike pyplot it keeps no figure and opens no window

    format_name = file.suffix[1:].lower()
    with matplotlib.rc_context(_STYLE):
        height = _TITLE_INCHES + sum(heights_inches)
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
        if heights_inches:
            grid = figure.subplots(len(heights_inches), squeeze=False, gridspec_kw={"height_ratios": heights_inches})
            yield list(grid[:, 0])
        else:
            yield []
        content = io.BytesIO()
        figure.savefig(content, format=format_name, metadata={"Date": None} if format_name == "svg" else None)
    write_file(file, content.getvalue())
