"""The loop of `fastvlm watch`: newest frame, change, answer, line, command; and what it counts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from fastvlm.cli.question import Question
from fastvlm.cli.reply import Reply, written
from fastvlm.cli.terminal import Answers, print_json
from fastvlm.cli.watch_command import CommandChoice
from fastvlm.errors import ImageError
from fastvlm.images.frames import clock
from fastvlm.images.live_frames import ChangeFilter, LatestFrame, LiveFrame

if TYPE_CHECKING:
    from fastvlm.api import FastVLM
    from fastvlm.images.live_folder import FolderSource
    from fastvlm.images.live_video import VideoSource

STALL_S = 60.0


@dataclass
class Counts:
    """What a summary says, while watching goes on."""

    start_s: float = field(default_factory=time.monotonic)
    frames: int = 0  # looked at
    unchanged: int = 0
    dropped: int = 0
    damaged: int = 0
    answers: int = 0
    latency_ms: float = 0.0  # of all answers together
    commands: int = 0
    failed_commands: int = 0

    def summary(self) -> str:
        """One line."""
        num_read = self.frames + self.dropped
        parts = [
            f"{num_read} frames in {time.monotonic() - self.start_s:.1f} s",
            f"{self.answers} answer{'s' * (self.answers != 1)}",
        ]
        if self.answers:
            parts[-1] += f" after {self.latency_ms / self.answers:.0f} ms on average"
        parts += [f"{self.unchanged} unchanged", f"{self.dropped} dropped"]
        parts += [f"{self.damaged} not readable"] if self.damaged else []
        parts += [f"{self.commands} commands run, {self.failed_commands} failed"] if self.commands else []
        return ", ".join(parts) + "."


@dataclass(frozen=True)
class WatchLoop:
    """Asks one question about each new frame of a source.

    Args:
        model: answers.
        load_ms: what opening it took.
        question: asked about each new frame.
        command: what is run after an answer.
        is_json: True for JSON lines.
        warn: called with one line for what goes wrong without ending the loop.
        counts: changed while the loop runs.
    """

    model: FastVLM
    load_ms: float
    question: Question
    command: CommandChoice
    is_json: bool
    warn: Callable[[str], None]
    counts: Counts = field(default_factory=Counts)

    def run(self, frames: Iterable[LiveFrame], changes: ChangeFilter, max_answers: int | None = None) -> None:
        """Until the frames end, or `max_answers` have been given. Raises ImageError if the source breaks off."""
        for frame in frames:
            if self._is_new(frame, changes):
                self._answer(frame)
            if max_answers is not None and self.counts.answers >= max_answers:
                return

    def _is_new(self, frame: LiveFrame, changes: ChangeFilter) -> bool:
        self.counts.frames += 1
        try:
            _ = frame.image
        except ImageError as error:
            if frame.file is None:
                raise
            self.counts.damaged += 1
            self.warn(str(error))
            return False
        is_new = changes.takes(frame)
        self.counts.unchanged = changes.num_unchanged
        return is_new

    def _answer(self, frame: LiveFrame) -> None:
        opening_ms = 1000 * (time.monotonic() - frame.arrived_s)
        completion = written(self.question.events(self.model, frame.image), lambda _: None)
        latency_ms = 1000 * (time.monotonic() - frame.arrived_s)
        self.counts.answers += 1
        self.counts.latency_ms += latency_ms
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            **frame.as_dict(),
            "latency_ms": round(latency_ms, 3),
            "dropped": self.counts.dropped,
            **Reply(completion, self.load_ms, opening_ms).as_dict(),
            "is_triggered": self.command.is_triggered_by(completion.text),
        }
        self._print(frame, line)
        if line["is_triggered"]:
            self.counts.commands += 1
            self.counts.failed_commands += not self.command.start(line, self.warn)

    def _print(self, frame: LiveFrame, line: dict[str, Any]) -> None:
        if self.is_json:
            print_json(line)
            sys.stdout.flush()
            return
        where = clock(frame.time_s) if frame.file is None else frame.file
        Answers().write(f"[{where}, {line['latency_ms']:.0f} ms] {line['answer']}\n")


@contextmanager
def opened_frames(
    source: VideoSource | FolderSource, counts: Counts, warn: Callable[[str], None], *, is_each: bool
) -> Iterator[Iterable[LiveFrame]]:
    """Frames of `source`: each of them if `is_each`, taken when the one before is answered; else always the newest."""
    stop = threading.Event()
    frames = source.frames(stop, warn, is_paced=not is_each)
    if is_each:
        with closing(frames):
            yield frames
        return
    with LatestFrame(frames, stop, stall_s=STALL_S) as newest:
        yield _counted(newest, counts)


def _counted(newest: LatestFrame, counts: Counts) -> Iterator[LiveFrame]:
    """`newest`, with its dropped frames in `counts`."""
    for frame in newest:
        counts.dropped = newest.num_dropped
        yield frame
    counts.dropped = newest.num_dropped
