"""Benchmark tasks: reader, metric, prompt hint and maximum reply length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastvlm.evaluation.layouts.choice import read_ai2d, read_mmmu, read_pope, read_scienceqa, read_seed
from fastvlm.evaluation.layouts.plain import read_plain
from fastvlm.evaluation.layouts.reading import Reading
from fastvlm.evaluation.layouts.vqa import (
    Place,
    read_captions,
    read_chartqa,
    read_docvqa,
    read_gqa,
    read_textvqa,
    read_vqav2,
)

# LLaVA-1.5's words (arXiv 2310.03744, table 7), which lmms-eval uses too.
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_ONE_WORD = "Answer the question with a single word."  # lmms-eval 0.7.3, tasks/chartqa/chartqa.yaml


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name: as `--task` takes it; in the summary it is the score of all its tests together.
        read: its files' reader.
        metric: name of its metric.
        hint: the last line of every question.
        max_new_tokens: after which a reply is cut.
        about: what it is, for people.
    """

    name: str
    read: Callable[[Place], Reading]
    metric: str
    hint: str
    max_new_tokens: int
    about: str


TASKS = {
    task.name: task
    for task in (
        Task("vqav2", read_vqav2, "vqa", _SHORT, 16, "VQAv2, questions about photographs"),
        Task("textvqa", read_textvqa, "vqa", _SHORT, 16, "TextVQA, text in photographs"),
        Task("docvqa", read_docvqa, "anls", _SHORT, 32, "DocVQA, scanned documents"),
        Task("infovqa", read_docvqa, "anls", _SHORT, 32, "InfographicVQA"),
        Task("chartqa", read_chartqa, "relaxed", _ONE_WORD, 16, "ChartQA"),
        Task("gqa", read_gqa, "exact", _SHORT, 16, "GQA, relations in photographs"),
        Task("pope", read_pope, "yes-no", _SHORT, 16, "POPE, objects that are not there"),
        Task("seed", read_seed, "choice", _LETTER, 16, "SEED-Bench, its questions about images"),
        Task("mmmu", read_mmmu, "choice", "", 64, "MMMU, college exams"),
        Task("scienceqa", read_scienceqa, "choice", _LETTER, 16, "ScienceQA, the test split"),
        Task("ai2d", read_ai2d, "choice", _LETTER, 16, "AI2D, diagrams"),
        Task("captions", read_captions, "cider", "", 64, "COCO captions"),
        Task("plain", read_plain, "exact", "", 64, "our own JSON Lines"),
    )
}
# The mini's own questions: asked as it was trained, without a hint. 24 tokens as in fastvlm_recipes.mini.evaluate.
MINI = Task("mini", read_plain, "exact", "", 24, "what fastvlm-mini was trained for")
