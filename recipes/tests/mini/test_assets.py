"""Icons of an Iconify set become rasters."""

import json
import sys

import numpy as np

from fastvlm_recipes.demo_data.emoji import RASTER_FILE
from fastvlm_recipes.demo_data.vocabulary import EMOJI_STYLES, HELD_OUT_STYLE
from fastvlm_recipes.mini import assets


def test_icons_are_drawn_by_style_and_name(tmp_path, monkeypatch, capsys):
    disc = {"body": '<circle cx="8" cy="8" r="8" fill="#ff0000"/>', "width": 16, "height": 16}
    for style in (*EMOJI_STYLES, HELD_OUT_STYLE):
        (tmp_path / f"iconify-json-{style}").mkdir()
        icons = {"icons": {"lion": disc, "elephant": disc, "no-answer": disc}}
        (tmp_path / f"iconify-json-{style}" / "icons.json").write_text(json.dumps(icons))
    monkeypatch.setattr(sys, "argv", ["assets", "--data", str(tmp_path)])
    assets.main()
    assert "8 icons of 2 names" in capsys.readouterr().out
    with np.load(tmp_path / RASTER_FILE) as rasters:
        assert rasters["names"].tolist() == ["lion", "elephant"] * 4
        assert rasters["icons"].shape == (8, assets.SIDE, assets.SIDE, 4)
        assert rasters["icons"][0, 64, 64].tolist() == [255, 0, 0, 255] and rasters["icons"][0, 0, 0, 3] == 0
