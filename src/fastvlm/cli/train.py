"""`fastvlm train`: train a checkpoint by a recipe."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli import train_options as options
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries, say
from fastvlm.cli.train_lines import ProgressLines
from fastvlm.errors import CheckpointError, DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastvlm.training.recipe import Recipe
    from fastvlm.training.run.callbacks import Progress
    from fastvlm.training.run.training_run import Outcome


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped one (--recipes).")
    ] = None,
    model: options.Model = None,
    data: options.Data = None,
    images_in: options.ImagesIn = None,
    ignored: options.Ignored = None,
    settings: options.Settings = None,
    max_steps: options.MaxSteps = None,
    is_listing: options.Recipes = False,
    out: options.Out = None,
    is_check: options.Check = False,
    is_resumed: options.Resume = False,
    allows_changed_data: options.AllowChangedData = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Train or fine-tune a checkpoint by a recipe; the path of the new folder is printed.

    A terminal shows a progress bar; otherwise stderr gets a line every 30 s.
    Ctrl-C and SIGTERM end the run after its current step, with a checkpoint; --resume continues from it to the same
    result. With several GPUs or machines: torchrun --nproc-per-node 8 -m fastvlm train ...

    \b
    Examples:
      fastvlm train --recipes
      fastvlm train lora --data mine.jsonl --images-in photos --check
      fastvlm train lora --data mine.jsonl --images-in photos --out tried-on-the-mini
      fastvlm train lora -m apple/FastVLM-0.5B --data mine.jsonl --images-in photos --out mine
      fastvlm train lora -m apple/FastVLM-0.5B --data mine.jsonl --images-in photos --out mine --resume
      fastvlm train mini --data shards --set batch_size=16 --set parts.encoder=frozen --max-steps 200
    """
    if is_listing:
        _list_recipes(is_json=is_json)
        return
    if recipe is None:
        raise UsageError("Name a recipe: a YAML file or one that comes with the package (fastvlm train --recipes).")
    if allows_changed_data and not is_resumed:
        raise UsageError("--allow-changed-data is for resumed runs; give --resume too.")
    quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
    plan = _plan(recipe, model, data, images_in, ignored, options.read_settings(settings), max_steps)
    notes = Notes(is_quiet=is_quiet or not _is_first_process())
    if is_check:
        _check(plan, notes, is_json=is_json)
        return
    folder = Path(f"train-{plan.name}") if out is None else out
    notes.say(f"Training {plan.model} by the recipe {plan.name} in {folder}.")
    outcome = _run(plan, folder, notes, is_resumed=is_resumed, allows_changed_data=allows_changed_data)
    if _is_first_process():
        _show(outcome, is_json=is_json)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _plan(
    recipe: str,
    model: str | None,
    data: list[str] | None,
    images_in: str | None,
    ignored: list[str] | None,
    changes: dict[str, Any],
    max_steps: int | None,
) -> Recipe:
    """Read the recipe and apply the command line's changes."""
    from fastvlm.training.recipe import read_recipe

    if images_in is not None and not data:
        raise UsageError("--images-in is the folder of the images of --data; give --data too.")
    if ignored and not data:
        raise UsageError("--ignore leaves out columns of --data; give --data too, or data.ignore in the recipe.")
    if model is not None:
        changes["model"] = model
    if data:
        changes["data"] = [{"path": path, "images_in": images_in, "ignore": ignored or []} for path in data]
    if max_steps is not None:
        changes["max_steps"] = max_steps
    return read_recipe(recipe, changes)


def _list_recipes(*, is_json: bool) -> None:
    from fastvlm.training.recipe import shipped_recipes

    files = shipped_recipes()
    whats = {name: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, file in files.items()}
    if is_json:
        print_json({name: {"what": whats[name], "file": str(file)} for name, file in files.items()})
        return
    for name, what in whats.items():
        typer.echo(f"{name:<14} {what}")


def _check(plan: Recipe, notes: Notes, *, is_json: bool) -> None:
    """Print the report of --check. Raises DataError if a sample cannot be used."""
    from fastvlm.training.data.recipe_data import open_dataset
    from fastvlm.training.data.report import check_data
    from fastvlm.training.run.model_setup import open_processor

    if not plan.data:
        raise UsageError("There is nothing to check: give --data, or data in the recipe.")
    with notes.waiting("Opening"):
        try:
            processor = open_processor(plan)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Without it -m mini checks records and images as well; only the numbers of tokens differ."
            ) from error
        dataset = open_dataset(plan, plan.data, processor)
    with notes.counting("Reading samples") as progress:
        shown = progress if notes.is_shown or notes.is_quiet else ProgressLines("reading").count
        report = check_data(dataset.samples, dataset, on_progress=shown)
    if is_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.text())
    if report.bad:
        raise DataError(f"{len(report.bad)} of {len(dataset)} samples cannot be used; they are listed above.")


def _run(plan: Recipe, folder: Path, notes: Notes, **resuming: bool) -> Outcome:
    from fastvlm.bench.machine import source_commit
    from fastvlm.cli.train_tests import measure_with, read_tests

    with notes.waiting("Starting"):
        from fastvlm.training.run.training_run import TrainingRun

        tests = read_tests(plan)
    with notes.bars(*_columns()) as bar:
        measure = measure_with(plan, tests, notes, bar.stop) if tests else None
        report = _progress_callback(bar) if notes.is_shown or notes.is_quiet else ProgressLines("training").report
        run = TrainingRun(plan, folder, on_progress=report, commit=source_commit(), measure=measure)
        return run.train(**resuming)


def _show(outcome: Outcome, *, is_json: bool) -> None:
    """Print the result's path; after a signal print how to resume, and exit with its code."""
    if outcome.signal is not None:
        name = "Ctrl-C" if outcome.signal == signal.SIGINT else signal.Signals(outcome.signal).name
        words = ["fastvlm", *sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])]
        say(
            "stopped",
            f"by {name} after step {outcome.step} of {outcome.num_steps}; {outcome.checkpoint} is written. "
            f"Resume with: {shlex.join(words)}",
        )
        raise SystemExit(128 + outcome.signal)
    if is_json:
        values = {key: value for key, value in asdict(outcome).items() if key != "signal"}
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in values.items()})
        return
    typer.echo(str(outcome.model or outcome.adapter))


def _columns() -> tuple[Any, ...]:
    """Columns of the progress bar: steps, loss, images per second, remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    facts = TextColumn("{task.fields[facts]}", markup=False)
    return TextColumn("Training"), BarColumn(), MofNCompleteColumn(), facts, TimeRemainingColumn()


def _progress_callback(bar: Any) -> Callable[[Progress], None]:
    """A progress callback that updates `bar`."""
    task = bar.add_task("", total=None, facts="", start=False)

    def report(progress: Progress) -> None:
        bar.start_task(task)
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
        facts = f"{loss}  {progress.images_per_s:.1f} images/s"
        bar.update(task, completed=progress.step, total=progress.num_steps, facts=facts)

    return report
