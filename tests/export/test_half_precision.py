"""A warning where the encoder's numbers come near the end of float16, in every format that has half precision."""

import dataclasses
import importlib.util

import parrot
import pytest
import torch

from fastvlm.export import export as exporting
from fastvlm.export.checks import overflow_warnings, samples
from fastvlm.export.graphs import LARGEST_HALF, VisionGraph, halved
from fastvlm.export.source import open_source

_BIAS, _NEXT = "model.multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_2.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "parrot")


def loud(source, share):
    """`source` with a hidden number of the projector at `share` of float16's end, which nothing reads."""
    checkpoint = source.checkpoint
    bias, weight = (checkpoint.tensors[name].clone() for name in (_BIAS, _NEXT))
    bias[0], weight[:, 0] = share * LARGEST_HALF, 0
    return dataclasses.replace(source, checkpoint=checkpoint.with_tensors({_BIAS: bias, _NEXT: weight}))


@torch.no_grad()
@pytest.mark.parametrize(("share", "is_warned"), [(0.95, True), (0.8, False)])
def test_numbers_near_the_end_of_float16(folder, share, is_warned):
    source = loud(open_source(folder), share)
    asked, graph = samples(source), VisionGraph(source.checkpoint)
    warnings = overflow_warnings(graph, asked, "these files")
    assert len(warnings) == is_warned
    assert all("float16 ends at 65504: take these files only after" in warning for warning in warnings)
    assert halved(graph)(asked[0].pixel_values).isfinite().all()  # its GELU does not double them


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnx"), ("coreml", "coremltools")])
def test_an_export_warns(folder, tmp_path, monkeypatch, to, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    source = loud(open_source(folder), 0.95)
    monkeypatch.setattr(exporting, "open_source", lambda *_: source)
    report = exporting.export(folder, tmp_path / "it", to=to, dtypes=["fp16"])
    (warning,) = report.warnings
    assert "take fp16" in warning and "float16 ends at 65504" in warning and "--check-images" in warning
