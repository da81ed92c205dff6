"""A bare machine: Pillow's own font, no icons, no data sets, no hub; a test adds what it needs, in the real formats."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from fastvlm_recipes.demo_data import clothes, emoji, fonts
from fastvlm_recipes.demo_data.vocabulary import EMOJI_NAMES, EMOJI_STYLES, HELD_OUT_STYLE

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A machine that is busy with other work must not fail a test.
EXAMPLES = int(os.environ.get("FASTVLM_TEST_EXAMPLES", "25"))  # more in `make slow`
settings.register_profile(
    "any_machine", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")


def forget():
    for cached in (fonts._faces, fonts.families, emoji.load_rasters, clothes.load_clothes):
        cached.cache_clear()
    fonts._given.clear()


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    (folder / "fonts.json").write_text(json.dumps([]))
    monkeypatch.setenv(fonts.FONT_LIST_VARIABLE, str(folder / "fonts.json"))
    monkeypatch.setenv(clothes.FOLDER_VARIABLE, str(folder / "no-clothes"))
    monkeypatch.delenv(emoji.DATA_VARIABLE, raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def icons(monkeypatch, tmp_path):
    """A raster of each name in each style: plain discs whose color tells the style."""
    styles = [*EMOJI_STYLES, HELD_OUT_STYLE]
    rows = [(style, name) for style in styles for name in EMOJI_NAMES[:12]]
    images = np.zeros((len(rows), 128, 128, 4), np.uint8)
    for index, (style, _) in enumerate(rows):
        images[index, 16:112, 16:112] = (40 + 60 * styles.index(style), 90, 90, 255)
    folder = tmp_path / "icons"
    folder.mkdir()
    names = np.array([name for _, name in rows])
    np.savez_compressed(
        folder / emoji.RASTER_FILE, icons=images, styles=np.array([style for style, _ in rows]), names=names
    )
    monkeypatch.setenv(emoji.DATA_VARIABLE, str(folder))
    emoji.load_rasters.cache_clear()


@pytest.fixture
def garments(monkeypatch, tmp_path):
    """Fashion-MNIST's four files, 40 + 20 images: more lit rows the higher the class, in the test part columns."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    for part, count in (("train", 40), ("t10k", 20)):
        classes = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, kind in zip(images, classes, strict=True):
            lit = image if part == "train" else image.T
            lit[4 : 5 + 2 * kind] = 255
        header = np.array([2051, count, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = np.array([2049, count], ">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + classes.tobytes()))
    monkeypatch.setenv(clothes.FOLDER_VARIABLE, str(folder))
    clothes.load_clothes.cache_clear()
