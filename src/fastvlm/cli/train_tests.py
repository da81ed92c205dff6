"""Tests of a recipe: read before the run, run on the final folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.eval_options import QuestionOptions
from fastvlm.cli.eval_run import Evaluation
from fastvlm.cli.terminal import Notes
from fastvlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastvlm.evaluation.questions import Question
    from fastvlm.training.recipe import Recipe, TestEntry
    from fastvlm.training.run.model_card import TestScore

_LIMIT_SEED = 0  # as `fastvlm eval`: of the questions that `limit` draws


@dataclass(frozen=True)
class RecipeTest:
    """One entry of a recipe's tests with its questions."""

    source: QuestionOptions
    questions: list[Question]


def read_tests(plan: Recipe) -> list[RecipeTest]:
    """Read the questions of all tests, so that errors appear before the training and not after it.

    Raises:
        UsageError: an unknown task, a file that is not there, no questions.
        DataError: records that cannot be asked.
    """
    return [_read(number, entry) for number, entry in enumerate(plan.tests)]


def _read(number: int, entry: TestEntry) -> RecipeTest:
    from fastvlm.evaluation.run.scores import draw_sample

    place = f"tests.{number} of the recipe"
    data, images = (None if path is None else Path(path) for path in (entry.data, entry.images))
    try:
        source = QuestionOptions(entry.task, entry.suite, data, images, None, entry.metric, entry.limit)
        reading = source.read()
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    if reading.bad:
        raise DataError(f"{place}: {len(reading.bad)} records cannot be asked; the first: {reading.bad[0]}.")
    questions = draw_sample(reading.questions, entry.limit, _LIMIT_SEED)
    if not questions:
        raise UsageError(f"{place} has no questions. Is {entry.data} the right file for {source.name}?")
    return RecipeTest(source, questions)


def measure_with(
    plan: Recipe, tests: list[RecipeTest], notes: Notes, on_start: Callable[[], None]
) -> Callable[[Path], list[TestScore]]:
    """A function that runs all tests on a final folder, of a model or an adapter.

    `on_start` is called first, to stop other progress bars, because rich shows one at a time.
    """

    def measure(folder: Path) -> list[TestScore]:
        on_start()
        return [score for test in tests for score in _scores(test, _choice(plan, folder), notes)]

    return measure


def _choice(plan: Recipe, folder: Path) -> ModelChoice:
    """The model choice for a folder; an adapter is tested at the image size of its training."""
    if not (folder / "adapter_config.json").is_file():
        return ModelChoice(str(folder))
    size = plan.image_size
    shown = None if size is None else str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
    return ModelChoice(plan.model, image_size=shown, adapter=str(folder))


def _scores(test: RecipeTest, choice: ModelChoice, notes: Notes) -> list[TestScore]:
    from fastvlm.evaluation.run.runner import GenerationOptions
    from fastvlm.training.run.model_card import TestScore

    task = test.source.benchmark
    generation = GenerationOptions(task.hint, task.max_new_tokens)
    evaluation = Evaluation(test.source, test.questions, generation, choice)
    result, _ = evaluation.run(notes)
    metric = evaluation.metric
    return [
        TestScore(row.test, row.n, metric.label, row.score, row.interval, row.majority, is_share=metric.name != "cider")
        for row in evaluation.rows(result)
    ]
