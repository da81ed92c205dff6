"""One evaluation of the command line: run, files and table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastvlm.cli.eval_choices import Asked, Kept, Machine
from fastvlm.cli.terminal import Notes, print_json, say

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.metrics.judging import Metric
    from fastvlm.evaluation.questions import Question
    from fastvlm.evaluation.run.benchmark_run import OnProgress, Result
    from fastvlm.evaluation.run.runner import Asking
    from fastvlm.evaluation.run.scores import Row
    from fastvlm.evaluation.tasks import Task

_WORTH_KEEPING = 500  # questions from which on losing the replies would hurt


@dataclass(frozen=True)
class Run:
    """One evaluation with all its settings."""

    asked: Asked
    task: Task
    questions: list[Question]
    asking: Asking
    machine: Machine
    kept: Kept
    is_blind: bool

    @property
    def metric(self) -> Metric:
        """The metric of the task."""
        from fastvlm.evaluation.metrics.table import METRICS

        return METRICS[self.task.metric]

    def identity(self) -> dict[str, Any]:
        """Settings that two runs must share to reuse predictions."""
        from fastvlm.evaluation.run.run_folder import questions_digest

        return {
            **self.machine.about(),
            "task": self.asked.name,
            "questions": questions_digest(self.questions),
            "hint": self.asking.hint,
            "max_new_tokens": self.asking.max_new_tokens,
            "temperature": self.asking.temperature,
            "seed": self.asking.seed,
        }

    def made(self, notes: Notes) -> tuple[Result, dict[str, str]]:
        """Ask and score; return the result, device and dtype."""
        from fastvlm.evaluation.run.benchmark_run import run
        from fastvlm.evaluation.run.run_folder import checkpoint_digest, claim_folder

        folder = self.machine.folder()
        if self.kept.folder is not None:
            identity = {"checkpoint": checkpoint_digest(folder), **self.identity()}
            claim_folder(self.kept.folder, identity, is_restart=self.kept.is_restart)
        elif len(self.questions) >= _WORTH_KEEPING:
            notes.say(f"{len(self.questions)} questions: without --out a run that is stopped begins from the start.")
        engine, computed = self.machine.open(folder, notes)
        with progress_bars(notes) as on_progress:
            result = run(
                engine,
                self.questions,
                self.metric,
                self.asking,
                folder=self.kept.folder,
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
        return result, computed

    def rows(self, result: Result) -> list[Row]:
        """Rows of the tests, with their mean for a task in parts and refusals for the mini suite."""
        from fastvlm.evaluation.run.scores import refusal_rows, together

        rows = list(result.rows)
        if self.asked.suite is not None:
            return rows + refusal_rows(self.questions, result.seen, result.blind)
        if len(rows) > 1 and self.asked.task != "plain":
            rows.append(together(self.asked.name, rows))
        return rows

    def show(self, result: Result, reading: Reading, computed: Mapping[str, str], *, is_json: bool) -> None:
        """Write the files, print the table and the last line."""
        from fastvlm.bench.machine import environment_card
        from fastvlm.evaluation.run.published_figures import published_figures
        from fastvlm.evaluation.run.summary import as_table, summary

        rows, published = self.rows(result), published_figures(self.machine.choice.name, self.asked.name)
        about = {
            "task": self.asked.name,
            **self.machine.about(),
            "computed": dict(computed),
            "settings": {**self.identity(), "limit": self.asked.limit, "slots": self.machine.slots},
            "bad_records": [str(record) for record in reading.bad],
            "left_out": dict(reading.left_out),
            "unread_fields": dict(reading.unread_fields),
            "environment": environment_card(),
        }
        content = summary(about, result, rows, self.metric, published)
        if self.kept.folder is not None:
            self._write(self.kept.folder, content, result)
        if not is_json:
            typer.echo(as_table(rows, self.metric, published) + "\n")
        print_json(content)

    def _write(self, folder: Path, content: Mapping[str, Any], result: Result) -> None:
        from fastvlm.evaluation.run.worst_page import worst_cases, worst_page
        from fastvlm.storage.whole_files import write_file

        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_file(folder / "summary.json", text + "\n")
        cases = worst_cases(self.questions, result.seen, result.rows, self.kept.num_worst, self.asking.seed)
        page = worst_page(f"{self.asked.name}: {self.machine.choice.name}", cases, len(self.questions))
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

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total, completed=done, rate="")
            progress.update(bars[what], completed=done)
            speed = progress.tasks[bars[what]].speed
            if speed is not None:
                progress.update(bars[what], rate=f"{speed:.1f} /s")

        yield tell
