"""The recipe is a package beside the library; its tests never look at fonts or icon sets of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only Pillow's built-in font, no emoji."""
    from fastvlm.demo_data import emoji, fonts

    fonts_file = tmp_path / "fonts.json"
    fonts_file.write_text(json.dumps([]))
    monkeypatch.setenv(fonts.FONT_LIST_VARIABLE, str(fonts_file))
    monkeypatch.delenv(emoji.DATA_VARIABLE, raising=False)
    for cached in (fonts._faces, fonts.families, emoji.load_rasters):
        cached.cache_clear()
