"""Benchmark tasks: reader, metric, prompt hint and maximum reply length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastvlm.evaluation.layouts.multiple_choice import read_ai2d, read_mmmu, read_scienceqa, read_seed
from fastvlm.evaluation.layouts.open_ended import (
    CHARTQA,
    DOCVQA,
    GQA,
    INFOVQA,
    POPE,
    TEXTVQA,
    read_captions,
    read_vqav2,
)
from fastvlm.evaluation.layouts.plain import read_plain
from fastvlm.evaluation.layouts.reading import Place, Reading

# LLaVA-1.5's prompts (arXiv 2310.03744, table 7), which lmms-eval uses too.
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_ONE_WORD = "Answer the question with a single word."  # lmms-eval 0.7.3, tasks/chartqa/chartqa.yaml


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name: as `--task` takes it; in the summary it is the score of all its tests together.
        read: reader of its files.
        metric: name of its metric.
        hint: the last line of every question.
        max_new_tokens: after which a reply is cut.
    """

    name: str
    read: Callable[[Place], Reading]
    metric: str
    hint: str = ""
    max_new_tokens: int = 64


TASKS = {
    task.name: task
    for task in (
        Task("vqav2", read_vqav2, "vqa", _SHORT, 16),
        Task("textvqa", TEXTVQA.read, "vqa", _SHORT, 16),
        Task("docvqa", DOCVQA.read, "anls", _SHORT, 32),
        Task("infovqa", INFOVQA.read, "anls", _SHORT, 32),
        Task("chartqa", CHARTQA.read, "relaxed", _ONE_WORD, 16),
        Task("gqa", GQA.read, "exact", _SHORT, 16),
        Task("pope", POPE.read, "yes-no", _SHORT, 16),
        Task("seed", read_seed, "choice", _LETTER, 16),
        Task("mmmu", read_mmmu, "choice"),
        Task("scienceqa", read_scienceqa, "choice", _LETTER, 16),
        Task("ai2d", read_ai2d, "choice", _LETTER, 16),
        Task("captions", read_captions, "cider"),
        Task("plain", read_plain, "exact"),
    )
}
# The mini's own questions: asked as it was trained, without a hint. 24 tokens as in fastvlm_recipes.mini.evaluate.
MINI = Task("mini", read_plain, "exact", max_new_tokens=24)
