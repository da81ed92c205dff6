"""Options of `fastvlm eval`, in groups, and the checked choice of questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastvlm.cli.choices import check_word
from fastvlm.cli.options import grouped_option as _option
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.evaluation.layouts.reading import Reading
    from fastvlm.evaluation.tasks import Task

SUITES = ("mini",)
MOST_SLOTS = 256
_QUESTIONS, _GENERATION, _RESULTS = "Questions", "Generation", "Results"

SuiteOption = Annotated[
    str | None, _option(_QUESTIONS, "--suite", metavar="NAME", text="mini: 380 questions that come with the package.")
]
TaskOption = Annotated[
    str | None,
    _option(
        _QUESTIONS,
        "--task",
        metavar="NAME",
        text="vqav2, textvqa, docvqa, infovqa, chartqa, gqa, pope, seed, mmmu, scienceqa, ai2d, captions, or plain: "
        "our own JSON Lines.",
    ),
]
DataOption = Annotated[
    Path | None,
    _option(_QUESTIONS, "--data", metavar="PATH", text="The benchmark's own file, or its folder; docs/evaluate.md."),
]
ImagesOption = Annotated[
    Path | None,
    _option(_QUESTIONS, "--images", metavar="FOLDER", text="Its images, if not where the benchmark itself has them."),
]
AnnotationsOption = Annotated[
    Path | None,
    _option(_QUESTIONS, "--annotations", metavar="FILE", text="VQAv2's answers, if not next to its questions."),
]
LimitOption = Annotated[
    int | None, _option(_QUESTIONS, "--limit", metavar="N", text="At most N questions a test, drawn with --seed.")
]
CheckOption = Annotated[
    bool, _option(_QUESTIONS, "--check", text="Read everything, report what is wrong, and ask nothing.")
]
SkipBadOption = Annotated[
    bool, _option(_QUESTIONS, "--skip-bad", text="Leave out records that cannot be asked; they are named and counted.")
]
MetricOption = Annotated[
    str | None,
    _option(
        _GENERATION,
        "--metric",
        metavar="NAME",
        text="For plain: exact, vqa, anls, relaxed, choice, yes-no, cer or cider.  [default: exact]",
    ),
]
HintOption = Annotated[
    str | None,
    _option(
        _GENERATION, "--hint", metavar="TEXT", text="Last line of every question instead of the task's own; '' is none."
    ),
]
BlindOption = Annotated[
    bool | None,
    _option(
        _GENERATION,
        "--blind/--no-blind",
        text="Also ask about a gray image, to score answers without seeing. The mini suite does it by default.",
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    _option(
        _GENERATION,
        *("--max-new-tokens", "-n"),
        metavar="N",
        text="Maximum number of tokens in a reply; if not given, the task's own.",
    ),
]
SlotsOption = Annotated[int, _option(_GENERATION, "--slots", metavar="N", text="Replies generated at the same time.")]
OutOption = Annotated[
    Path | None,
    _option(
        _RESULTS,
        "--out",
        metavar="FOLDER",
        text="Write predictions.jsonl, summary.json and worst.html there, and resume an earlier run.",
    ),
]
RestartOption = Annotated[bool, _option(_RESULTS, "--restart", text="Delete an earlier run's results in --out.")]
WorstOption = Annotated[int, _option(_RESULTS, "--worst", metavar="N", text="Number of questions in worst.html.")]


@dataclass(frozen=True)
class QuestionOptions:
    """Options that choose the questions. Raises UsageError."""

    task: str | None
    suite: str | None
    data: Path | None
    images: Path | None = None
    annotations: Path | None = None
    metric: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        from fastvlm.evaluation.metrics.table import METRICS
        from fastvlm.evaluation.tasks import TASKS

        if (self.task is None) == (self.suite is None):
            raise UsageError("Give either --suite mini, or --task with --data. Try: fastvlm eval --suite mini")
        if self.suite is not None:
            check_word("--suite", self.suite, SUITES)
        if self.task is not None:
            check_word("--task", self.task, tuple(TASKS))
            self._check_paths()
        if self.metric is not None:
            check_word("--metric", self.metric, tuple(METRICS))
            if self.task != "plain":
                raise UsageError("--metric goes with --task plain; the other tasks have their own metric.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; expected 1 or more.")

    def _check_paths(self) -> None:
        if self.data is None:
            raise UsageError(f"--task {self.task} needs --data: the benchmark's own file or folder; docs/evaluate.md.")
        for flag, path in (("--data", self.data), ("--images", self.images), ("--annotations", self.annotations)):
            if path is not None and not path.exists():
                raise UsageError(f"{flag} {path} does not exist; expected a file or folder.")

    @property
    def name(self) -> str:
        """Name of the task or the suite."""
        return str(self.task or self.suite)

    @property
    def benchmark(self) -> Task:
        """The task, with the chosen metric."""
        from fastvlm.evaluation.tasks import MINI, TASKS

        task = MINI if self.task is None else TASKS[self.task]
        return task if self.metric is None else replace(task, metric=self.metric)

    def read(self) -> Reading:
        """Read the questions. Raises DataError or UsageError."""
        from fastvlm.evaluation.layouts.plain import mini_place
        from fastvlm.evaluation.layouts.reading import Place

        if self.task is None or self.data is None:
            place = replace(mini_place(self.data), images=self.images)
        else:
            place = Place(self.data, self.images, self.annotations, test=self.task)
        return self.benchmark.read(place)
