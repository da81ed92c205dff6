"""`fastvlm caption`: questions over many images, into files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.backends.native.openmp import configure_openmp
from fastvlm.cli.caption_options import (
    ColumnChoice,
    EngineChoice,
    MachineChoice,
    OutputChoice,
    PromptChoice,
)
from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.cli.failures import FAILED
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, with_options
from fastvlm.cli.schema_choice import SchemaChoice
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries, quiet_warnings, say

if TYPE_CHECKING:
    from fastvlm.captioning import CaptionRun, Progress, Summary
    from fastvlm.captioning.progress import OnProgress

_LINE_EVERY_S = 30.0  # of progress, where stderr is a file


@with_options
def caption(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Folders, image files, list files (.txt), WebDataset (.tar), Parquet, JSON Lines; paths or URLs as s3://.",
        ),
    ],
    prompts: PromptChoice,
    schema: SchemaChoice,
    output: OutputChoice,
    columns: ColumnChoice,
    engine: EngineChoice,
    machines: MachineChoice,
    sampling: Sampling,
    choice: ModelChoice,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Ask questions about many images, on one machine or several, and lose no row.

    Each image and prompt is a row of the output: id, prompt, text, error, finish_reason, tokens, ms, input. An image
    that cannot be read is a row with an error. To go on after a stop of any kind, give the same command again.

    \b
    Examples:
      fastvlm caption photos --out captions --prompt "Describe the image."
      fastvlm caption photos --out captions -p "What is this?" -p "What color is it?" --sidecars photos
      fastvlm caption train-*.parquet --out captions --prompts prompts.jsonl --format parquet --max-errors 1%
      fastvlm caption s3://bucket/shards --out captions -p "Describe the image." --shard 3/16
      fastvlm caption photos --out captions -p "Describe the image." --url http://localhost:8000/v1
    """
    from fastvlm.captioning import CaptionRun

    notes = Notes(is_quiet=is_quiet)
    asked = prompts.prompts(schema.schema)
    settings = output.settings(columns, prompts.prompt_column, machines.shard)
    how = engine.captioner_settings(choice, sampling, prompts.system)
    if machines.ray is None:
        with notes.waiting("Looking at the inputs"):
            run = CaptionRun(inputs, output.folder, asked, settings)
        _warn_of_unused(run, notes)
        summary = _run_here(run, how, notes, is_debug=is_debug)
    else:
        from fastvlm.integrations.ray_data import Cluster, caption_on_cluster

        cluster = Cluster(machines.ray, machines.ray_actors, machines.ray_cpus, machines.ray_gpus, machines.ray_splits)
        summary = caption_on_cluster(inputs, output.folder, asked, settings, how, cluster)
    _show(summary, output, is_json=is_json, is_remote=engine.url is not None)
    if summary.failed_shards:
        raise typer.Exit(FAILED)


def _warn_of_unused(run: CaptionRun, notes: Notes) -> None:
    unused = ", ".join(f"{count} {suffix}" for suffix, count in run.inputs.unused.most_common())
    if unused and not notes.is_quiet:
        say("warning", f"files that are not read, by suffix: {unused}.")


def _run_here(run: CaptionRun, how: dict[str, Any], notes: Notes, *, is_debug: bool) -> Summary:
    from fastvlm.captioning.captioners import make_captioner

    if "url" not in how:
        configure_openmp()
        quiet_warnings(is_quiet=notes.is_quiet, is_debug=is_debug)
        silence = partial(quiet_libraries, is_quiet=notes.is_quiet, is_debug=is_debug)
        how = {**how, "before_transformers": silence}
    with notes.waiting(f"Opening {how.get('url', how['model'])}"):
        captioner = make_captioner(how)
    with _progress_shown(notes) as on_progress:
        return run.run(captioner, on_progress)


@contextmanager
def _progress_shown(notes: Notes) -> Iterator[OnProgress]:
    """Images, rates, errors and time left: a bar on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, TextColumn

    with notes.bars(BarColumn(), TextColumn("{task.description}", markup=False)) as bars:
        task, next_s = bars.add_task("", total=None), time.monotonic() + _LINE_EVERY_S

        def on_progress(progress: Progress) -> None:
            nonlocal next_s
            bars.update(
                task,
                description=_line(progress),
                total=progress.total,
                completed=progress.num_kept + progress.num_images,
            )
            if not notes.is_shown and not notes.is_quiet and time.monotonic() >= next_s:
                next_s = time.monotonic() + _LINE_EVERY_S
                say("progress", _line(progress))

        yield on_progress


def _line(progress: Progress) -> str:
    done, left_s = progress.num_kept + progress.num_images, progress.left_s
    total = "" if progress.total is None else f" of {progress.total}"
    left = "" if left_s is None else f", {_duration(left_s)} left"
    return (
        f"{done}{total} images, {progress.images_per_s:.1f} images/s, {progress.tokens_per_s:.0f} tokens/s, "
        f"{progress.num_failed} with errors{left}"
    )


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"


def _show(summary: Summary, output: OutputChoice, *, is_json: bool, is_remote: bool) -> None:
    """Print the figures of the run; a server's cores are not known."""
    if is_json:
        print_json({"out": str(output.folder), **summary.as_dict(output.price_per_hour)})
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary.errors.items())
    lines = [
        f"images      {summary.images} in {_duration(summary.seconds)}; {summary.kept} were there",
        f"errors      {summary.failed} images" + (f" ({kinds}); --retry-errors asks them again" if kinds else ""),
        f"rate        {summary.images_per_s:.2f} images/s, {summary.tokens / summary.seconds:.0f} tokens/s",
    ]
    if not is_remote:
        lines.append(f"per core    {summary.images_per_s_per_core:.2f} images/s on each of {summary.cores}")
    cost = None if output.price_per_hour is None else summary.cost_per_million(output.price_per_hour)
    if cost is not None:
        lines.append(f"cost        {cost:.2f} for a million images at {output.price_per_hour:g} an hour")
    typer.echo("\n".join([*lines, f"output      {output.folder}"]))
    for problem in summary.failed_shards:
        say("error", problem)
