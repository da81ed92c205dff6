"""The image: a bar for every measurement, nothing outside, the same in SVG and PNG."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from result_samples import result

from fastvlm.bench.plot import Bar, Line, Text, drawing, save_plot
from fastvlm.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"


def test_every_measurement_has_a_bar_and_a_line():
    shapes, _ = drawing(result())
    measured = result()["measures"]
    assert sum(isinstance(shape, Bar) for shape in shapes) == len(measured)
    assert sum(isinstance(shape, Line) for shape in shapes) == len(measured)
    words = " ".join(shape.words for shape in shapes if isinstance(shape, Text))
    for entry in measured:
        assert entry["contestant"] in words and entry["measure"] in words


def test_bars_are_as_long_as_what_they_show():
    shapes, _ = drawing(result())
    ours, theirs = [shape for shape in shapes if isinstance(shape, Bar)][:2]
    assert theirs.width / ours.width == pytest.approx(3.3 / 0.6)
    assert ours.color != theirs.color


def test_nothing_stands_outside_or_on_top_of_another():
    shapes, height = drawing(result())
    bars = [shape for shape in shapes if isinstance(shape, Bar)]
    assert all(bar.x >= 0 and bar.x + bar.width <= 860 and bar.y >= 0 and bar.y + bar.height <= height for bar in bars)
    tops = sorted(bar.y for bar in bars)
    assert all(b - a >= 16 for a, b in itertools.pairwise(tops))


def test_svg_is_valid_and_escaped(tmp_path):
    found = result()
    found["model"]["name"] = "a <b> & c"
    save_plot(found, tmp_path / "bars.svg")
    root = ElementTree.parse(tmp_path / "bars.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert any("a <b> & c" in (text.text or "") for text in root.iter(f"{SVG}text"))
    assert len(list(root.iter(f"{SVG}rect"))) == 1 + len(found["measures"])


def test_png_is_drawn(tmp_path):
    save_plot(result(), tmp_path / "bars.PNG")
    image = Image.open(tmp_path / "bars.PNG")
    assert image.size == (2 * 860, 2 * drawing(result())[1])
    assert len(image.getcolors(maxcolors=10**6)) > 3


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.svg or \.png"):
        save_plot(result(), tmp_path / "bars.pdf")
    assert list(tmp_path.iterdir()) == [] and Path("bars.pdf").exists() is False
