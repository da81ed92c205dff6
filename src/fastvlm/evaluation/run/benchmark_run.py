"""A whole evaluation: `run` asks the questions, stores the predictions and scores them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastvlm.engine.engine import Engine
from fastvlm.errors import DataError, UsageError
from fastvlm.evaluation.metrics.judging import Metric
from fastvlm.evaluation.questions import Question, seen_gray
from fastvlm.evaluation.run.predictions import Prediction, PredictionFile
from fastvlm.evaluation.run.runner import Asking, ask_all
from fastvlm.evaluation.run.scores import Row, score_tests

OnProgress = Callable[[str, int, int], None]  # what is asked, how many are done, of how many


def _keep_silent(*_: object) -> None:
    """Default progress callback: does nothing."""


@dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Args:
        rows: one a test.
        seen: predictions by the question's id.
        blind: replies to the gray images by the question's id; None if they were not asked.
        num_kept: replies that an earlier run had already.
        num_cut_bytes: bytes of a half line that an earlier run left.
        seconds: what asking took, and for how many questions, gray ones included.
    """

    rows: list[Row]
    seen: Mapping[str, Prediction]
    blind: Mapping[str, str] | None
    num_kept: int
    num_cut_bytes: int
    seconds: float
    num_asked: int


def run(
    engine: Engine,
    questions: Sequence[Question],
    metric: Metric,
    asking: Asking,
    *,
    folder: Path | None = None,
    is_blind: bool = False,
    on_progress: OnProgress = _keep_silent,
) -> Result:
    """Ask the unanswered questions, then score all.

    Args:
        engine: answers.
        questions: at least one, of one or several tests; ids are unique.
        metric: judges the replies.
        asking: hint, length, temperature, seed.
        folder: where predictions are kept and looked for; None to keep nothing.
        is_blind: ask the same about a gray image too, each distinct question once.
        on_progress: called before the first question and after each one.

    Raises:
        UsageError: no questions.
        DataError: answers that the metric cannot judge; predictions of an earlier run that cannot be read.
    """
    if not questions:
        raise UsageError("There are no questions to ask. Is it the right file, and the right --task?")
    problems = [problem for question in questions if (problem := metric.problem(question)) is not None]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(questions)} questions do not fit the metric; the first: {problems[0]}."
        )
    start_s = time.perf_counter()
    with PredictionFile(_file(folder, "predictions.jsonl")) as seen:
        num_kept = sum(seen.is_answered(question.id) for question in questions)
        _ask(engine, questions, asking, seen, "questions", on_progress)
    blind, num_gray = _ask_blind(engine, questions, asking, folder, on_progress) if is_blind else (None, 0)
    seconds = time.perf_counter() - start_s
    return Result(
        rows=score_tests(questions, seen.known, blind, metric),
        seen=seen.known,
        blind=blind,
        num_kept=num_kept,
        num_cut_bytes=seen.num_cut_bytes,
        seconds=seconds,
        num_asked=len(questions) - num_kept + num_gray,
    )


def _file(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _ask(
    engine: Engine,
    questions: Sequence[Question],
    asking: Asking,
    kept: PredictionFile,
    what: str,
    on_progress: OnProgress,
) -> int:
    """Ask the questions without a stored reply; return how many."""
    left = [question for question in questions if not kept.is_answered(question.id)]
    done, total = len(questions) - len(left), len(questions)
    on_progress(what, done, total)

    def keep(question: Question, prediction: Prediction) -> None:
        nonlocal done
        kept.add(prediction, {"test": question.test, "question": question.text, "answers": list(question.answers)})
        done += 1
        on_progress(what, done, total)

    ask_all(engine, left, asking, keep)
    return len(left)


def _ask_blind(
    engine: Engine, questions: Sequence[Question], asking: Asking, folder: Path | None, on_progress: OnProgress
) -> tuple[dict[str, str], int]:
    """(replies to gray images by question id, number of questions asked); each distinct question is asked once."""
    names = {question.id: _blind_id(question) for question in questions}
    distinct = {names[question.id]: replace(seen_gray(question), id=names[question.id]) for question in questions}
    with PredictionFile(_file(folder, "blind.jsonl")) as kept:
        num_asked = _ask(engine, list(distinct.values()), asking, kept, "gray images", on_progress)
    return {identity: kept.known[name].reply for identity, name in names.items()}, num_asked


def _blind_id(question: Question) -> str:
    """An id that is equal for questions with the same text and number of images."""
    return hashlib.sha256(f"{len(question.images)}\n{question.text}".encode()).hexdigest()[:16]
