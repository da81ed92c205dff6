"""A checkpoint with NaN in its weights ends an evaluation with one error; it does not score 0."""

import pytest
import torch

import fastvlm
from fastvlm.errors import NonFiniteError
from fastvlm.evaluation.layouts.plain import mini_place, read_plain
from fastvlm.evaluation.metrics.table import METRICS
from fastvlm.evaluation.run.benchmark_run import run
from fastvlm.evaluation.run.runner import GenerationOptions


def test_weights_that_are_no_numbers_end_the_run(tmp_path):
    model, processor = fastvlm.load("mini", device="cpu", dtype="float32")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[0] = float("nan")
    engine = fastvlm.Engine.from_model(model, processor, num_slots=2)
    questions = read_plain(mini_place()).questions[:3]
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        run(engine, questions, METRICS["exact"], GenerationOptions(), folder=tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == ""
