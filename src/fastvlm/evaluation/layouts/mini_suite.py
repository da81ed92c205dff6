"""The mini suite: 380 test questions with their images, shipped with the package."""

from __future__ import annotations

from pathlib import Path

from fastvlm.evaluation.layouts.vqa import Place

MINI_QUESTIONS = Path(__file__).parents[1] / "mini_eval"


def mini_place(data: Path | None = None) -> Place:
    """Place of the shipped questions, or of others in the same layout, such as the recipe's full tests."""
    return Place(MINI_QUESTIONS if data is None else data, test="mini")
