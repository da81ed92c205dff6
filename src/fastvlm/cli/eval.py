"""`fastvlm eval`: score a model on benchmarks' own files or on the mini suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fastvlm.cli import eval_options as options
from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.eval_choices import Asked, Kept, Machine
from fastvlm.cli.eval_run import Run
from fastvlm.cli.options import (
    DEFAULT_MODEL,
    AdapterOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FitOption,
    ImageSizeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RevisionOption,
)
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries, say
from fastvlm.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.questions import Question

_TOLD = 20  # bad records that are named one by one


def evaluate(
    suite: options.Suite = None,
    task: options.Task = None,
    data: options.Data = None,
    images: options.Images = None,
    annotations: options.Annotations = None,
    limit: options.Limit = None,
    is_check: options.Check = False,
    skips_bad: options.SkipBad = False,
    metric: options.Metric = None,
    hint: options.Hint = None,
    is_blind: options.Blind = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    slots: options.Slots = 4,
    bits: options.Bits = 16,
    out: options.Out = None,
    is_restart: options.Restart = False,
    worst: options.Worst = 50,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    image_fit: FitOption = None,
    image_size: ImageSizeOption = None,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Score a model on a benchmark's own files, or on the mini suite.

    A table goes to stdout: each test's score with its 95 % interval, beside what always giving the commonest answer
    would score, what the model says without seeing (--blind), and what its authors report, if it is a published
    checkpoint. The last line is one JSON object with `scores`, `blind`, `majority` and `n` by test, from 0 to 1.

    With --out a run that was stopped goes on where it was: give the same command again.

    \b
    Examples:
      fastvlm eval --suite mini --json
      fastvlm eval --task docvqa --data DocVQA/val_v1.0.json -m apple/FastVLM-0.5B --out docvqa
      fastvlm eval --task pope --data POPE/coco --images coco/val2014 --limit 500 --blind
      fastvlm eval --task plain --data mine.jsonl --metric anls --out mine
      fastvlm eval --task vqav2 --data v2_OpenEnded_mscoco_val2014_questions.json --check
    """
    asked = Asked(task, suite, data, images, annotations, metric, limit, skips_bad)
    kept = Kept(out, is_restart, worst)
    machine = Machine(ModelChoice(model, revision, device, dtype, image_fit, image_size, bits, adapter), slots)
    chosen = asked.chosen()
    length = chosen.max_new_tokens if max_new_tokens is None else max_new_tokens
    Sampling(max_new_tokens=length, temperature=temperature, seed=seed)  # refuses bad values before anything is read
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Reading the questions"):
        reading = asked.read()
    if is_check:
        _show_check(reading, asked, is_json=is_json)
        return
    questions = _usable(asked, reading, seed)
    quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
    from fastvlm.evaluation.run.runner import Asking

    asking = Asking(chosen.hint if hint is None else hint, length, temperature, seed)
    also_blind = asked.suite is not None if is_blind is None else is_blind
    run = Run(asked, chosen, questions, asking, machine, kept, also_blind)
    with kept.held():
        result, computed = run.made(notes)
        run.show(result, reading, computed, is_json=is_json)


def _show_check(reading: Reading, asked: Asked, *, is_json: bool) -> None:
    """Print the report of --check. Raises DataError if there are bad records."""
    from fastvlm.evaluation.run.scores import by_test

    counts = {test: len(group) for test, group in by_test(reading.questions).items()}
    bad = [str(record) for record in reading.bad]
    if not is_json:
        for test, count in counts.items():
            typer.echo(f"{test}: {count} questions")
        for reason, count in reading.left_out.items():
            typer.echo(f"left out: {count} {reason}")
        for name, count in reading.unread_fields.items():
            typer.echo(f"not read: the field {name!r} of {count} records")
        for line in bad:
            typer.echo(f"bad: {line}")
    unread = dict(reading.unread_fields)
    left_out = dict(reading.left_out)
    print_json({"task": asked.name, "n": counts, "left_out": left_out, "unread_fields": unread, "bad_records": bad})
    if bad:
        raise DataError(
            f"{len(bad)} of {len(bad) + len(reading.questions)} records cannot be asked; they are listed above."
        )


def _usable(asked: Asked, reading: Reading, seed: int) -> list[Question]:
    """The questions to ask. Raises DataError for bad records, unless they are skipped."""
    from fastvlm.evaluation.run.scores import drawn

    if reading.bad and not asked.skips_bad:
        raise DataError(
            f"{len(reading.bad)} of {len(reading.bad) + len(reading.questions)} records cannot be asked; the first: "
            f"{reading.bad[0]}. --check lists them all, --skip-bad leaves them out."
        )
    if reading.unread_fields:
        say("warning", f"fields that are not read: {', '.join(map(repr, reading.unread_fields))}")
    for record in reading.bad[:_TOLD]:
        say("skipped", str(record))
    if len(reading.bad) > _TOLD:
        say("skipped", f"{len(reading.bad) - _TOLD} more; the summary has them all.")
    questions = drawn(reading.questions, asked.limit, seed)
    if not questions:
        raise UsageError(f"There is nothing to ask in {asked.data}. Is it the right file for --task {asked.name}?")
    return questions
