"""The mini's own questions: 380 of its tests, frozen, with their images; they come with the package."""

from __future__ import annotations

from pathlib import Path

from fastvlm.evaluation.layouts.vqa import Place

__all__ = ["MINI_QUESTIONS", "mini_place"]

MINI_QUESTIONS = Path(__file__).parents[1] / "mini_eval"


def mini_place(data: Path | None = None) -> Place:
    """The questions that ship with the package, or others in the same layout, such as the recipe's whole tests."""
    return Place(MINI_QUESTIONS if data is None else data, test="mini")
