"""One evaluation of the command line: run, files and table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastvlm.cli.choices import ModelChoice
from fastvlm.cli.eval_options import QuestionOptions
from fastvlm.cli.terminal import Notes, print_json, say
from fastvlm.config_limits import dtype_name

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.metrics.metric import Metric
    from fastvlm.evaluation.questions import Question
    from fastvlm.evaluation.run.benchmark_run import OnProgress, Result
    from fastvlm.evaluation.run.runner import GenerationOptions
    from fastvlm.evaluation.run.scores import Row

_LONG_RUN = 500  # questions from which on a note recommends --out


@dataclass(frozen=True)
class Evaluation:
    """One evaluation with all its settings; without `out` nothing is written."""

    source: QuestionOptions
    questions: list[Question]
    generation: GenerationOptions
    model: ModelChoice
    slots: int = 4
    out: Path | None = None
    is_restart: bool = False
    is_blind: bool = False

    @property
    def metric(self) -> Metric:
        """The metric of the task."""
        from fastvlm.evaluation.metrics.table import METRICS

        return METRICS[self.source.benchmark.metric]

    def _model_settings(self) -> dict[str, Any]:
        """The model and its settings that change replies."""
        settings = asdict(self.model)
        del settings["device"], settings["prompt_lookup"]  # replies do not depend on them
        if self.model.adapter is None:
            del settings["adapter"]
        if self.model.encoder_bits == 16:  # folders of earlier versions do not name it
            del settings["encoder_bits"]
        if self.model.runtime is None:  # the same
            del settings["runtime"]
        return {"model": settings.pop("name"), **settings}

    def identity(self) -> dict[str, Any]:
        """Settings that two runs must share to reuse predictions."""
        from fastvlm.evaluation.run.run_folder import questions_digest

        questions = questions_digest(self.questions)
        return {**self._model_settings(), "task": self.source.name, "questions": questions, **asdict(self.generation)}

    def run(self, notes: Notes) -> tuple[Result, dict[str, str]]:
        """Ask and score; return the result, and the device and dtype of the computation."""
        from fastvlm.evaluation.run.benchmark_run import run
        from fastvlm.evaluation.run.run_folder import claim_folder
        from fastvlm.formats.checkpoint_digest import checkpoint_digest
        from fastvlm.formats.places import checkpoint_path
        from fastvlm.opening import open_engine

        folder = checkpoint_path(self.model.name, revision=self.model.revision)
        if self.out is not None:
            identity = {"checkpoint": checkpoint_digest(folder), **self.identity()}
            claim_folder(self.out, identity, is_restart=self.is_restart)
        elif len(self.questions) >= _LONG_RUN:
            notes.say(f"{len(self.questions)} questions: without --out a run that is stopped begins from the start.")
        with notes.waiting(f"Opening {self.model.name}"):
            # No reply is streamed: requests start at once, and the same ones always run together.
            engine = open_engine(folder, num_slots=self.slots, admission_ratio=math.inf, **self.model.settings())
        with progress_bars(notes) as on_progress:
            result = run(
                engine,
                self.questions,
                self.metric,
                self.generation,
                folder=self.out,
                is_blind=self.is_blind,
                on_progress=on_progress,
            )
        if result.num_kept:
            notes.say(f"{result.num_kept} replies were there from an earlier run.")
        if result.num_cut_bytes:
            say(
                "warning",
                f"an earlier run left half a line in predictions.jsonl; its {result.num_cut_bytes} bytes are gone.",
            )
        dtype = dtype_name(engine.backend.dtype)
        return result, {"device": str(engine.backend.device), "dtype": dtype}

    def rows(self, result: Result) -> list[Row]:
        """Rows of the tests, with their mean for a task in parts and refusals for the mini suite."""
        from fastvlm.evaluation.run.scores import mean_row, refusal_rows

        rows = list(result.rows)
        if self.source.suite is not None:
            return rows + refusal_rows(self.questions, result.seen, result.blind)
        if len(rows) > 1 and self.source.task != "plain":
            rows.append(mean_row(self.source.name, rows))
        return rows

    def show(
        self, result: Result, reading: Reading, computed: Mapping[str, str], num_worst: int, *, is_json: bool
    ) -> None:
        """Write the files, print the table and the last line."""
        from fastvlm.bench.machine import environment_card
        from fastvlm.evaluation.run.published_figures import published_figures
        from fastvlm.evaluation.run.summary import as_table, summary

        rows, published = self.rows(result), published_figures(self.model.name, self.source.name)
        about = {
            "task": self.source.name,
            **self._model_settings(),
            "computed": dict(computed),
            "settings": {**self.identity(), "limit": self.source.limit, "slots": self.slots},
            **reading.report(),
            "environment": environment_card(),
        }
        content = summary(about, result, rows, self.metric, published)
        if self.out is not None:
            self._write(self.out, content, result, num_worst)
        if not is_json:
            typer.echo(as_table(rows, self.metric, published) + "\n")
        print_json(content)

    def _write(self, folder: Path, content: Mapping[str, Any], result: Result, num_worst: int) -> None:
        from fastvlm.evaluation.run.worst_page import worst_cases, worst_page
        from fastvlm.storage.whole_files import write_file

        write_file(folder / "summary.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        cases = worst_cases(self.questions, result.seen, result.rows, num_worst, self.generation.seed)
        page = worst_page(f"{self.source.name}: {self.model.name}", cases, len(self.questions))
        write_file(folder / "worst.html", page.encode(errors="replace"))


@contextmanager
def progress_bars(notes: Notes) -> Iterator[OnProgress]:
    """Progress bars on stderr: count, rate and remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<15}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9}", markup=False),
        TimeRemainingColumn(),
    )
    with notes.bars(*columns) as progress:
        bars: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total, completed=done, rate="")
            speed = progress.tasks[bars[what]].speed
            progress.update(bars[what], completed=done, rate="" if speed is None else f"{speed:.1f} /s")

        yield on_progress
