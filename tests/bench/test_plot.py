"""The figure: a bar with a range and a number for every measurement, in SVG and PNG."""

from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from PIL import Image
from result_samples import result

from fastvlm.bench.plot import save_plot
from fastvlm.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"


def texts(file) -> list[str]:
    return [text.text or "" for text in ElementTree.parse(file).getroot().iter(f"{SVG}text")]


def test_every_measurement_is_named_with_its_median(tmp_path):
    save_plot(result(), tmp_path / "bars.svg")
    found = texts(tmp_path / "bars.svg")
    assert "encode (s; less is better)" in found and "memory (MB; less is better)" in found
    assert "fastvlm 1024 px" in found and "fastvlm 8x" in found and "3000" in found
    for entry in result()["measures"]:
        assert any(text.startswith(entry["measure"]) for text in found)
        assert any(text.startswith(entry["contestant"]) for text in found)


def test_bars_are_as_long_as_what_they_show(tmp_path, monkeypatch):
    drawn, barh = [], Axes.barh
    monkeypatch.setattr(Axes, "barh", lambda *given, **named: drawn.append(barh(*given, **named)) or drawn[-1])
    save_plot(result(), tmp_path / "bars.svg")
    assert sum(len(bars) for bars in drawn) == len(result()["measures"])
    ours, theirs = drawn[0]
    assert (ours.get_width(), theirs.get_width()) == pytest.approx((0.6, 3.3))
    assert ours.get_facecolor() != theirs.get_facecolor() and ours.get_y() < theirs.get_y()
    (segments,) = [lines.get_segments() for lines in drawn[0].errorbar.lines[2]]
    assert [segment[:, 0].tolist() for segment in segments] == [pytest.approx([0.5, 0.7]), pytest.approx([3.0, 3.6])]


def test_names_are_escaped(tmp_path):
    found = result()
    found["model"]["name"] = "a <b> & $c$"
    save_plot(found, tmp_path / "bars.svg")
    assert any("a <b> & $c$" in text for text in texts(tmp_path / "bars.svg"))


def test_png_is_drawn(tmp_path):
    save_plot(result(), tmp_path / "bars.PNG")
    assert len(Image.open(tmp_path / "bars.PNG").getcolors(maxcolors=10**6)) > 3


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.svg or \.png"):
        save_plot(result(), tmp_path / "bars.pdf")
    assert list(tmp_path.iterdir()) == []
