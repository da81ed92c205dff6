"""A whole evaluation: `run` asks the questions, stores the predictions and scores them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastvlm.engine.engine import Engine
from fastvlm.errors import DataError, UsageError
from fastvlm.evaluation.metrics.metric import Metric
from fastvlm.evaluation.questions import Question
from fastvlm.evaluation.run.predictions import Prediction, PredictionFile
from fastvlm.evaluation.run.runner import GenerationOptions, ask_all
from fastvlm.evaluation.run.scores import Row, score_tests

OnProgress = Callable[[str, int, int], None]  # what is asked, how many are done, of how many


@dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Args:
        rows: one a test.
        seen: predictions by the question's id.
        blind: replies to the gray images by the question's id; None if they were not asked.
        num_kept: replies that an earlier run had already.
        num_cut_bytes: bytes of an incomplete line that an earlier run left.
        seconds: time that asking took.
        num_asked: questions asked in this time, about gray images too.
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
    options: GenerationOptions,
    *,
    folder: Path | None = None,
    is_blind: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Result:
    """Ask the unanswered questions, then score all.

    Args:
        engine: gives the replies.
        questions: at least one, of one or several tests; ids are unique.
        metric: judges the replies.
        options: of prompt and sampling.
        folder: predictions are written there, and those of an earlier run are read; None to keep nothing.
        is_blind: True to ask about a gray image too, each distinct question once.
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

    def ask(what: str, wanted: Sequence[Question], file_name: str) -> tuple[PredictionFile, int]:
        with PredictionFile(None if folder is None else folder / file_name) as file:
            return file, _ask(engine, wanted, options, file, lambda done: on_progress(what, done, len(wanted)))

    start_s = time.perf_counter()
    seen, num_asked = ask("questions", questions, "predictions.jsonl")
    num_kept, blind = len(questions) - num_asked, None
    if is_blind:
        grays = {question.id: _gray(question) for question in questions}
        distinct = {gray.id: gray for gray in grays.values()}
        gray_file, num_gray = ask("gray images", list(distinct.values()), "blind.jsonl")
        blind = {identity: gray_file.known[gray.id].reply for identity, gray in grays.items()}
        num_asked += num_gray
    seconds = time.perf_counter() - start_s
    rows = score_tests(questions, seen.known, blind, metric)
    return Result(rows, seen.known, blind, num_kept, seen.num_cut_bytes, seconds, num_asked)


def _ask(
    engine: Engine,
    questions: Sequence[Question],
    options: GenerationOptions,
    file: PredictionFile,
    on_done: Callable[[int], None],
) -> int:
    """Ask the questions without a stored reply; return how many."""
    left = [question for question in questions if not file.is_answered(question.id)]
    done = len(questions) - len(left)
    on_done(done)

    def keep(question: Question, prediction: Prediction) -> None:
        nonlocal done
        file.add(prediction, {"test": question.test, "question": question.text, "answers": list(question.answers)})
        done += 1
        on_done(done)

    ask_all(engine, left, options, keep)
    return len(left)


def _gray(question: Question) -> Question:
    """The question about gray images; its id is equal for questions with the same text and number of images."""
    digest = hashlib.sha256(f"{len(question.images)}\n{question.text}".encode()).hexdigest()
    return replace(question, id=digest[:16], is_blind=True)
