"""Checked options of `fastvlm eval`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli.choices import ModelChoice, check_word
from fastvlm.cli.opening import open_engine
from fastvlm.cli.terminal import Notes
from fastvlm.errors import UsageError
from fastvlm.storage.locks import exclusive_folder

if TYPE_CHECKING:
    from fastvlm.engine.engine import Engine
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.tasks import Task

SUITES = ("mini",)
MOST_SLOTS = 256


@dataclass(frozen=True)
class Asked:
    """Options that choose the questions."""

    task: str | None
    suite: str | None
    data: Path | None
    images: Path | None
    annotations: Path | None
    metric: str | None
    limit: int | None
    skips_bad: bool

    def __post_init__(self) -> None:
        from fastvlm.evaluation.metrics.table import METRICS
        from fastvlm.evaluation.tasks import TASKS

        if (self.task is None) == (self.suite is None):
            raise UsageError("Give either --suite mini, or --task with --data. Try: fastvlm eval --suite mini")
        if self.suite is not None:
            check_word("--suite", self.suite, SUITES)
        if self.task is not None:
            check_word("--task", self.task, tuple(TASKS))
            self._check_data()
        if self.metric is not None:
            check_word("--metric", self.metric, tuple(METRICS))
            if self.task != "plain":
                raise UsageError("--metric goes with --task plain; the other tasks have their own metric.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; expected 1 or more.")

    def _check_data(self) -> None:
        if self.data is None:
            raise UsageError(f"--task {self.task} needs --data: the benchmark's own file or folder; docs/evaluate.md.")
        for flag, path in (("--data", self.data), ("--images", self.images), ("--annotations", self.annotations)):
            if path is not None and not path.exists():
                raise UsageError(f"{flag} {path} does not exist; expected a file or folder.")

    @property
    def name(self) -> str:
        """Name of the task or the suite."""
        return str(self.task or self.suite)

    def chosen(self) -> Task:
        """The task, with the metric that was asked for."""
        from fastvlm.evaluation.tasks import MINI, TASKS

        task = MINI if self.task is None else TASKS[self.task]
        return replace(task, metric=self.metric) if self.metric is not None else task

    def read(self) -> Reading:
        """Read the questions. Raises DataError or UsageError."""
        from fastvlm.evaluation.layouts.mini_suite import mini_place
        from fastvlm.evaluation.layouts.vqa import Place

        task = self.chosen()
        if self.task is None or self.data is None:
            return task.read(replace(mini_place(self.data), images=self.images))
        return task.read(Place(self.data, self.images, self.annotations, test=self.task))


@dataclass(frozen=True)
class Kept:
    """Options of the output folder."""

    folder: Path | None
    is_restart: bool
    num_worst: int

    def __post_init__(self) -> None:
        if self.is_restart and self.folder is None:
            raise UsageError("--restart is about what lies in --out; give --out too.")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--out {self.folder} is a file; expected a folder.")
        if self.num_worst < 0:
            raise UsageError(f"--worst is {self.num_worst}; expected 0 or more.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder, if there is one. Raises UsageError if another run writes there."""
        with nullcontext() if self.folder is None else exclusive_folder(self.folder.absolute()):
            yield


@dataclass(frozen=True)
class Machine:
    """Options of the model and the engine."""

    choice: ModelChoice
    slots: int

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MOST_SLOTS:
            raise UsageError(f"--slots is {self.slots}; expected 1 to {MOST_SLOTS}.")

    def folder(self) -> Path:
        """Path of the checkpoint; downloads one from the Hub."""
        from fastvlm.formats.places import checkpoint_path

        return checkpoint_path(self.choice.name, revision=self.choice.revision)

    def open(self, folder: Path, notes: Notes) -> tuple[Engine, dict[str, str]]:
        """Open the engine; also return its device and dtype."""
        with notes.waiting(f"Opening {self.choice.name}"):
            # No reply is streamed: requests start at once, and the same ones always run together.
            settings: dict[str, Any] = {"num_slots": self.slots, "admission_ratio": math.inf}
            engine = open_engine(folder, self.choice, notes, **settings)
        dtype = str(engine.backend.dtype).removeprefix("torch.")
        return engine, {"device": str(engine.backend.device), "dtype": dtype}

    def about(self) -> dict[str, Any]:
        """Settings that determine the replies, besides the questions."""
        choice = self.choice
        return {
            "model": choice.name,
            "revision": choice.revision,
            **({} if choice.adapter is None else {"adapter": choice.adapter}),
            "dtype": choice.dtype,
            "bits": choice.bits,
            "image_fit": choice.image_fit,
            "image_size": choice.image_size,
        }
