"""The metrics by name, each with its source."""

from __future__ import annotations

from fastvlm.evaluation.metrics.cider import judge_captions
from fastvlm.evaluation.metrics.metric import Metric, one_by_one
from fastvlm.evaluation.metrics.option_letter import choice_accuracy
from fastvlm.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from fastvlm.evaluation.metrics.text_match import anls, exact_match, judge_characters
from fastvlm.evaluation.metrics.vqa_accuracy import vqa_accuracy
from fastvlm.evaluation.metrics.yes_no import judge_yes_no, yes_no_problem

_EXACT = "fastvlm, evaluation/metrics/text_match.py"
_VQA = "Antol et al. 2015, arXiv 1505.00468, section 3; visualqa.org/evaluation.html"
_ANLS = "Biten et al. 2019, arXiv 1905.13648, equation 1, threshold 0.5"
_RELAXED = "Masry et al. 2022, arXiv 2203.10244, section 5.1"
_CHOICE = "Yue et al. 2024, arXiv 2311.16502, section 4.1"
_POPE = "Li et al. 2023, arXiv 2305.10355, section 5.1"
_CIDER = "Vedantam et al. 2015, arXiv 1411.5726; CIDEr-D by pycocoevalcap"

METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "exact match", _EXACT, one_by_one(exact_match)),
        Metric("vqa", "VQA accuracy", _VQA, one_by_one(vqa_accuracy)),
        Metric("anls", "ANLS", _ANLS, one_by_one(anls)),
        Metric("relaxed", "relaxed accuracy", _RELAXED, one_by_one(relaxed_accuracy)),
        Metric("choice", "multiple choice", _CHOICE, one_by_one(choice_accuracy)),
        Metric("yes-no", "F1 of yes", _POPE, judge_yes_no, problem=yes_no_problem),
        Metric("cer", "character error rate", "Rice 1996, section 2.1", judge_characters, is_error=True),
        Metric("cider", "CIDEr", _CIDER, judge_captions),
    )
}
