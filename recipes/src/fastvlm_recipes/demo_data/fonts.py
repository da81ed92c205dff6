"""Fonts by family, split into those for training and those never trained on.

Without the Debian font packages (on a fresh machine) Pillow's built-in font serves for both.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

from fastvlm_recipes.demo_data.vocabulary import GLYPHS

Split = Literal["train", "test"]

# Frozen: families whose every face is kept out of training.
HELD_OUT_FAMILIES: frozenset[str] = frozenset(
    {
        "Open Sans", "Open Sans Condensed", "Lato", "Vollkorn", "Comic Neue", "Roboto Slab", "PT Sans",
        "PT Sans Narrow", "PT Sans Caption", "JetBrains Mono", "Cabin", "Quattrocento", "Caladea", "Dosis",
    }
)  # fmt: skip
# Symbols, small capitals, scripts with illegible single letters, and system fonts of other alphabets.
UNUSABLE: tuple[str, ...] = (
    "Standard Symbols", "D050000L", "Keyboard", "Initials", "Z003", "Chorus", "Tamil", "Math", "Smallcaps",
    "GentiumAlt", "Emoji", "Symbol", "Dingbats",
)  # fmt: skip
CAPITALS_ONLY: tuple[str, ...] = ("Bebas",)
FONT_LIST_VARIABLE = "FASTVLM_MINI_FONTS"


Faces = tuple[tuple[str, str], ...]  # (family, file)
_given: list[Faces] = []  # fonts that another process found, see `use_faces`


def known_faces() -> Faces:
    """(family, file) of every usable face."""
    return _faces()


def use_faces(faces: Faces) -> None:
    """Use these fonts instead of searching, which takes seconds if there are hundreds."""
    _given[:] = [faces]
    for cached in (_faces, families):
        cached.cache_clear()


@lru_cache(maxsize=1)
def _faces() -> Faces:
    """Given by `use_faces`, listed in the JSON file FASTVLM_MINI_FONTS, or found by fontconfig."""
    if _given:
        return _given[0]
    listed = os.environ.get(FONT_LIST_VARIABLE)
    if listed is not None:
        return tuple((family, file) for family, file in json.loads(Path(listed).read_text()))
    try:
        out = subprocess.run(
            ["fc-list", "--format", "%{family[0]}|%{file}\n"],  # noqa: S607  # found on PATH
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    rows = {tuple(line.split("|", 1)) for line in out.splitlines() if line.endswith((".ttf", ".otf"))}
    named = {(row[0], row[1]) for row in rows if not any(bad in row[0] for bad in UNUSABLE)}
    return tuple(sorted((family, file) for family, file in named if has_all_glyphs(file)))


def has_all_glyphs(file: str) -> bool:
    """Whether the face has every character that may be drawn (a missing one is drawn as an empty box)."""
    font = ImageFont.truetype(file, 24, layout_engine=ImageFont.Layout.BASIC)
    absent = bytes(font.getmask("\uffff"))
    return all(bytes(font.getmask(char)) != absent for char in GLYPHS)


@lru_cache(maxsize=2)
def families(split: Split) -> dict[str, tuple[str, ...]]:
    """Family -> its font files; {"": ()}, for Pillow's own font, if none is installed."""
    table: dict[str, list[str]] = {}
    for family, file in _faces():
        if (family in HELD_OUT_FAMILIES) == (split == "test"):
            table.setdefault(family, []).append(file)
    return {family: tuple(files) for family, files in table.items()} or {"": ()}


@lru_cache(maxsize=600)
def load(file: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The face at `size` px per em; "" is Pillow's built-in one."""
    if not file:
        return ImageFont.load_default(size)
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def is_capitals_only(file: str) -> bool:
    """Whether the face shows capitals for small letters."""
    return any(name in file for name in CAPITALS_ONLY)
