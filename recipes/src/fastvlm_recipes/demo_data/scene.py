"""Records of drawn content. Lengths are in pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

Kind = Literal["shape", "glyph", "emoji", "clothing"]


@dataclass(frozen=True)
class Thing:
    """One drawn shape, character, emoji or garment; (x, y) is the center of its ink, `size` its larger side."""

    kind: Kind
    name: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Line:
    """One run of text on one base line; (x, y) is its center."""

    text: str
    color: str
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Receipt:
    """Texts of a receipt as written; `items` are names with their prices, `layout` is a name of receipt_layouts.py."""

    shop: str
    date: str
    items: tuple[tuple[str, str], ...]
    total: str
    layout: str


@dataclass(frozen=True)
class Chart:
    """Content of a bar chart, from left to right or from the top; `title` is "" if it has none.

    `colors` are the names of the bars' colors; `has_values` if each bar's number is printed next to it.
    """

    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[str, ...]
    has_values: bool
    style: str


@dataclass
class Scene:
    """An image (RGB, square) with everything that is in it; `asked` are questions that came with the image."""

    image: Image.Image
    topic: str
    background: str = ""
    things: list[Thing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    receipt: Receipt | None = None
    chart: Chart | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def shapes(self) -> list[Thing]:
        """The colored shapes, in the order of drawing."""
        return [thing for thing in self.things if thing.kind == "shape"]

    def emoji(self) -> list[Thing]:
        """The emoji, in the order of drawing."""
        return [thing for thing in self.things if thing.kind == "emoji"]
