"""Scores that the authors report for their checkpoints.

Percentages. Sources: Vasu et al., FastVLM (CVPR 2025, arXiv 2412.13303v2), table 6 by its rows (R4 and so on, all 1024
px) and table 11 (text-rich tasks); and the model cards of apple/FastVLM-* on the Hub, which equal no row of the paper:
which stage and resolution they were made with is not stated there. The paper scored GQA, ScienceQA, TextVQA and POPE
with LLaVA's scripts and the others with lmms-eval 0.2.2, so differences of wording and parsing remain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

_PAPER = "arXiv 2412.13303v2"
_TABLE_6 = ("gqa", "scienceqa", "textvqa", "pope", "vqav2", "docvqa", "mmmu", "seed")
_TABLE_11 = ("chartqa", "infovqa")
_ROWS = {  # (size, stage): row of table 6, percentages of its tasks and of table 11's
    ("0.5b", "2"): ("R4", (63.1, 81.5, 62.9, 86.6, 78.8, 70.4, 32.9, 69.2), (63.4, 35.8)),
    ("0.5b", "3"): ("R5", (62.7, 82.0, 65.8, 86.2, 78.6, 79.1, 33.6, 69.3), (71.4, 43.3)),
    ("1.5b", "2"): ("R12", (64.3, 89.9, 69.0, 87.8, 80.7, 75.6, 39.1, 73.1), (69.6, 41.7)),
    ("1.5b", "3"): ("R13", (64.3, 92.9, 71.2, 87.8, 80.9, 84.2, 38.0, 72.6), (69.5, 49.6)),
    ("7b", "2"): ("R41", (65.2, 95.7, 73.4, 86.9, 81.6, 82.7, 47.3, 74.1), (77.5, 51.2)),
    ("7b", "3"): ("R42", (64.1, 96.8, 76.1, 87.2, 81.9, 88.0, 44.0, 74.5), (78.1, 55.1)),
}
_CARD = ("ai2d", "scienceqa", "mmmu", "vqav2", "chartqa", "textvqa", "infovqa", "docvqa", "seed")
_CARDS = {
    "0.5b": (68.0, 85.2, 33.9, 76.3, 76.0, 64.5, 46.4, 82.5, 71.0),
    "1.5b": (77.4, 94.4, 37.8, 79.1, 80.1, 70.4, 59.7, 88.3, 74.2),
    "7b": (83.6, 96.7, 45.4, 80.8, 85.0, 74.9, 75.8, 93.2, 75.4),
}
_ZIP_NAME = re.compile(r"(?:llava-)?fastvithd_(0\.5b|1\.5b|7b)_stage([23])")
_HUB_NAME = re.compile(r"fastvlm-(0\.5b|1\.5b|7b)")


@dataclass(frozen=True)
class PublishedFigure:
    """A published score (0 to 1) and its source."""

    score: float
    source: str


def published_figures(model: str, task: str) -> list[PublishedFigure]:
    """Published scores of the checkpoint of this name on a task; empty for other names.

    Apple's zip folders (``llava-fastvithd_0.5b_stage3``) have the paper's scores, ``apple/FastVLM-0.5B`` its card's.
    """
    name = PurePath(model).name.lower()
    found: dict[str, dict[str, float]] = {}
    if zipped := _ZIP_NAME.fullmatch(name):
        size, stage = zipped.groups()
        row, shares_6, shares_11 = _ROWS[size, stage]
        found[f"{_PAPER}, table 6, row {row}"] = dict(zip(_TABLE_6, shares_6, strict=True))
        found[f"{_PAPER}, table 11, {size} stage {stage}"] = dict(zip(_TABLE_11, shares_11, strict=True))
    if hub := _HUB_NAME.fullmatch(name):
        found[f"model card of apple/FastVLM-{hub[1].upper()}"] = dict(zip(_CARD, _CARDS[hub[1]], strict=True))
    return [
        PublishedFigure(round(percent[task] / 100, 4), source) for source, percent in found.items() if task in percent
    ]
