"""The record of what was drawn: pixels beside the truth about them. Lengths are in pixels of the picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

Kind = Literal["shape", "glyph", "emoji"]


@dataclass(frozen=True)
class Thing:
    """One drawn shape, character or emoji; (x, y) is the centre of its ink, `size` its larger side."""

    kind: Kind
    name: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Line:
    """One run of text on one base line; `rank` is its place in reading order."""

    text: str
    colour: str
    x: float
    y: float
    height: float


@dataclass
class Scene:
    """A picture (RGB, square) with everything that is in it."""

    image: Image.Image
    topic: str
    background: str = ""
    things: list[Thing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def shapes(self) -> list[Thing]:
        """The coloured shapes, in the order of drawing."""
        return [thing for thing in self.things if thing.kind == "shape"]

    def emoji(self) -> list[Thing]:
        """The emoji, in the order of drawing."""
        return [thing for thing in self.things if thing.kind == "emoji"]
