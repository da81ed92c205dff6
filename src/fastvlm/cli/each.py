"""`ask --each`: one question asked about each of several images, several of them at the same time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvlm.cli.frames import FrameChoice, OpenedImages, open_sources, shown_name
from fastvlm.cli.question import Question
from fastvlm.cli.terminal import Notes
from fastvlm.errors import FastVlmError, SchemaError

if TYPE_CHECKING:
    from fastvlm.api import FastVLM
    from fastvlm.cli.reply import Reply

NUM_SLOTS = 4  # images that are answered together; on a CPU more of them gain little


@dataclass(frozen=True)
class EachAnswer:
    """The answer about one source, or the error in its place.

    Args:
        source: its name as given.
        images: what was taken of it.
        reply: the answer; None if there is an error.
    """

    source: str
    images: OpenedImages | None = None
    reply: Reply | None = None
    error: FastVlmError | None = None

    def as_line(self) -> str:
        """Name, tab, answer or error, without line breaks."""
        text = f"error: {self.error}" if self.reply is None else self.reply.completion.text
        return f"{shown_name(self.source)}\t{' '.join(text.splitlines())}"

    def as_dict(self, model: str) -> dict[str, Any]:
        """For JSON."""
        about = {"model": model, "source": shown_name(self.source)}
        if self.reply is None or self.images is None:
            return {**about, "error": str(self.error)}
        return {**about, **self.reply.as_dict(), "images": self.images.as_list()}


def answer_each(
    model: FastVLM, question: Question, names: Sequence[str], frames: FrameChoice, load_ms: float
) -> Generator[EachAnswer]:
    """The answers in the order of `names`. An image that fails has its error in its answer, and the others go on.

    Raises:
        SchemaError: the schema cannot be enforced.
    """
    notes = Notes(is_quiet=True)  # the threads share one terminal

    def answer(name: str) -> EachAnswer:
        from fastvlm.cli.reply import Reply, written

        try:
            images = open_sources([name], frames, notes)
            completion = written(question.events(model, images.frames), lambda _: None)
        except SchemaError:
            raise
        except FastVlmError as error:
            return EachAnswer(name, error=error)
        return EachAnswer(name, images, Reply(completion, load_ms, images.opening_ms))

    pool = ThreadPoolExecutor(NUM_SLOTS, "image")
    try:
        yield from pool.map(answer, names)
    finally:  # Ctrl-C too: what waits is not begun; closing the model ends what runs
        pool.shutdown(wait=False, cancel_futures=True)
