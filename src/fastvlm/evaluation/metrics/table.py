"""The metrics by name, each with its source."""

from __future__ import annotations

from fastvlm.evaluation.metrics.cider import judge_captions
from fastvlm.evaluation.metrics.judging import Metric, one_by_one
from fastvlm.evaluation.metrics.option_letter import choice_accuracy
from fastvlm.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from fastvlm.evaluation.metrics.text_match import anls, exact_match, judge_characters
from fastvlm.evaluation.metrics.vqa_accuracy import vqa_accuracy
from fastvlm.evaluation.metrics.yes_no import judge_yes_no, yes_no_problem

METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "exact match", "fastvlm, evaluation/metrics/text_match.py", one_by_one(exact_match)),
        Metric(
            "vqa",
            "VQA accuracy",
            "Antol et al. 2015, arXiv 1505.00468, section 3; visualqa.org/evaluation.html",
            one_by_one(vqa_accuracy),
        ),
        Metric("anls", "ANLS", "Biten et al. 2019, arXiv 1905.13648, equation 1, threshold 0.5", one_by_one(anls)),
        Metric(
            "relaxed",
            "relaxed accuracy",
            "Masry et al. 2022, arXiv 2203.10244, section 5.1",
            one_by_one(relaxed_accuracy),
        ),
        Metric(
            "choice", "multiple choice", "Yue et al. 2024, arXiv 2311.16502, section 4.1", one_by_one(choice_accuracy)
        ),
        Metric(
            "yes-no",
            "F1 of yes",
            "Li et al. 2023, arXiv 2305.10355, section 5.1",
            judge_yes_no,
            problem=yes_no_problem,
        ),
        Metric("cer", "character error rate", "Rice 1996, section 2.1", judge_characters, is_error=True),
        Metric("cider", "CIDEr", "Vedantam et al. 2015, arXiv 1411.5726; CIDEr-D by pycocoevalcap", judge_captions),
    )
}
