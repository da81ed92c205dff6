"""Figures: both formats, whole or not there, and one clear line without matplotlib."""

import sys

import pytest
from PIL import Image

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.plots import check_plot_file, figure_file


def draw(file):
    with figure_file(file, "two panels", [1.0, 2.0]) as (upper, lower):
        upper.plot([1, 2], [3, 4])
        lower.barh(["ours", "theirs"], [1, 2])


def test_both_formats_are_written_and_an_svg_is_reproducible(tmp_path):
    draw(tmp_path / "a.svg")
    draw(tmp_path / "b.SVG")
    draw(tmp_path / "c.png")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (1350, 525)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.svg or \.png"):
        check_plot_file(tmp_path / "a.pdf")


def test_nothing_is_written_where_drawing_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), figure_file(tmp_path / "a.svg", "", [1.0]):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*pip install 'fastvlm\[plots\]'"):
        draw(tmp_path / "a.svg")
