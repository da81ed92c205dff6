"""Makes the array of emoji rasters from unpacked npm icon sets: python -m fastvlm_recipes.mini.assets --data FOLDER."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvlm_recipes.demo_data.emoji import RASTER_FILE
from fastvlm_recipes.demo_data.vocabulary import EMOJI, EMOJI_STYLES, HELD_OUT_STYLE

SIDE = 128


def icon_svg(icon_set: dict[str, Any], icon: str) -> str:
    """One icon of an Iconify set as a whole SVG document."""
    body = icon_set["icons"][icon]
    width = body.get("width", icon_set.get("width", 16))
    height = body.get("height", icon_set.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SIDE}" height="{SIDE}">{body["body"]}</svg>'
    )


def rasterize(svg: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(SIDE, SIDE, 4) RGBA."""
    import resvg_py  # only this script needs it

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((SIDE, SIDE)))


def main() -> None:
    """Rasterize every icon that an answer names, in every style."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds iconify-json-<set>/icons.json")
    folder = parser.parse_args().data
    icons, styles, names = [], [], []
    for style in (*EMOJI_STYLES, HELD_OUT_STYLE):
        icon_set = json.loads((folder / f"iconify-json-{style}" / "icons.json").read_text())
        for name, candidates in EMOJI.items():
            for icon in candidates:
                if icon in icon_set["icons"]:
                    icons.append(rasterize(icon_svg(icon_set, icon)))
                    styles.append(style)
                    names.append(name)
    np.savez_compressed(folder / RASTER_FILE, icons=np.stack(icons), styles=np.array(styles), names=np.array(names))
    print(f"{len(icons)} icons of {len(set(names))} names -> {folder / RASTER_FILE}")


if __name__ == "__main__":
    main()
