"""`fastvlm eval`: score a model on benchmarks' own files or on the mini suite."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fastvlm.backends.native.openmp import configure_openmp
from fastvlm.cli import eval_options as options
from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.eval_run import Evaluation
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, SeedOption, TemperatureOption, with_options
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries, say
from fastvlm.errors import DataError, UsageError
from fastvlm.storage.locks import exclusive_folder

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.questions import Question

_MOST_NAMED = 20  # bad records that are named one by one


@with_options
def evaluate(
    suite: options.SuiteOption = None,
    task: options.TaskOption = None,
    data: options.DataOption = None,
    images: options.ImagesOption = None,
    annotations: options.AnnotationsOption = None,
    limit: options.LimitOption = None,
    is_check: options.CheckOption = False,
    skips_bad: options.SkipBadOption = False,
    metric: options.MetricOption = None,
    hint: options.HintOption = None,
    is_blind: options.BlindOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    slots: options.SlotsOption = 4,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    out: options.OutOption = None,
    is_restart: options.RestartOption = False,
    num_worst: options.WorstOption = 50,
    choice: ModelChoice = ModelChoice(),  # noqa: B008  # frozen
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Score a model on a benchmark's own files, or on the mini suite.

    A table goes to stdout. It has the score of each test with its 95 % interval, the score of always giving the
    commonest answer, the score of replies to a gray image (--blind), and the score that the authors of a published
    checkpoint report. The last line is one JSON object with `scores`, `blind`, `majority` and `n` by test, from 0 to 1.

    To resume a run that was stopped, give the same command with the same --out again.

    \b
    Examples:
      fastvlm eval --suite mini --json
      fastvlm eval --task docvqa --data DocVQA/val_v1.0.json -m apple/FastVLM-0.5B --out docvqa
      fastvlm eval --task pope --data POPE/coco --images coco/val2014 --limit 500 --blind
      fastvlm eval --task plain --data mine.jsonl --metric anls --out mine
      fastvlm eval --task vqav2 --data v2_OpenEnded_mscoco_val2014_questions.json --check
    """
    source = options.QuestionOptions(task, suite, data, images, annotations, metric, limit)
    length = source.benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    Sampling(max_new_tokens=length, temperature=temperature, seed=seed)  # refuses bad values before anything is read
    _check_output(out, num_worst, slots, is_restart=is_restart)
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Reading the questions"):
        reading = source.read()
    if is_check:
        _show_check(reading, source.name, is_json=is_json)
        return
    questions = _usable(source, reading, seed or 0, skips_bad=skips_bad)
    configure_openmp()
    quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
    from fastvlm.evaluation.run.runner import GenerationOptions

    generation = GenerationOptions(source.benchmark.hint if hint is None else hint, length, temperature, seed or 0)
    also_blind = suite is not None if is_blind is None else is_blind
    evaluation = Evaluation(source, questions, generation, choice, slots, out, is_restart, also_blind)
    with nullcontext() if out is None else exclusive_folder(out.absolute()):
        result, computed = evaluation.run(notes)
        evaluation.show(result, reading, computed, num_worst, is_json=is_json)


def _check_output(out: Path | None, num_worst: int, slots: int, *, is_restart: bool) -> None:
    if is_restart and out is None:
        raise UsageError("--restart is about what lies in --out; give --out too.")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; expected a folder.")
    if num_worst < 0:
        raise UsageError(f"--worst is {num_worst}; expected 0 or more.")
    if not 1 <= slots <= options.MOST_SLOTS:
        raise UsageError(f"--slots is {slots}; expected 1 to {options.MOST_SLOTS}.")


def _show_check(reading: Reading, name: str, *, is_json: bool) -> None:
    """Print the report of --check. Raises DataError if there are bad records."""
    from fastvlm.evaluation.run.scores import by_test

    counts = {test: len(group) for test, group in by_test(reading.questions).items()}
    if not is_json:
        lines = [f"{test}: {count} questions" for test, count in counts.items()]
        lines += [f"left out: {count} {reason}" for reason, count in reading.left_out.items()]
        lines += [f"not read: the field {field!r} of {count} records" for field, count in reading.unread_fields.items()]
        lines += [f"bad: {record}" for record in reading.bad]
        typer.echo("\n".join(lines))
    print_json({"task": name, "n": counts, **reading.report()})
    if reading.bad:
        raise DataError(f"{reading.share_of_bad()} records cannot be asked; they are listed above.")


def _usable(source: options.QuestionOptions, reading: Reading, seed: int, *, skips_bad: bool) -> list[Question]:
    """The questions to ask. Raises DataError for bad records, unless they are skipped."""
    from fastvlm.evaluation.run.scores import draw_sample

    if reading.bad and not skips_bad:
        raise DataError(
            f"{reading.share_of_bad()} records cannot be asked; the first: {reading.bad[0]}. "
            "--check lists them all, --skip-bad leaves them out."
        )
    if reading.unread_fields:
        say("warning", f"fields that are not read: {', '.join(map(repr, reading.unread_fields))}")
    for record in reading.bad[:_MOST_NAMED]:
        say("skipped", str(record))
    if len(reading.bad) > _MOST_NAMED:
        say("skipped", f"{len(reading.bad) - _MOST_NAMED} more; the summary has them all.")
    questions = draw_sample(reading.questions, source.limit, seed)
    if not questions:
        raise UsageError(f"There is nothing to ask in {source.data}. Is it the right file for --task {source.name}?")
    return questions
