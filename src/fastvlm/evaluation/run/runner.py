"""Runner: keeps every engine slot busy, prepares the next images meanwhile, and records failures per question.

What is asked when depends on the questions and on the engine's slots alone, not on how fast anything is, so that two
runs put the same requests together.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastvlm.engine.engine import Engine
from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.types import SEEDS, Completion, SamplingParams
from fastvlm.errors import FastVlmError
from fastvlm.evaluation.questions import Question, messages_of
from fastvlm.evaluation.run.predictions import Prediction

T = TypeVar("T")
OnPrediction = Callable[[Question, Prediction], None]


@dataclass(frozen=True)
class Asking:
    """Prompt and sampling settings of an evaluation.

    Args:
        hint: the last line of every question.
        max_new_tokens: after which a reply is cut.
        temperature: 0 for the likeliest token.
        seed: of a whole run; each question draws with its own, made of this and its id.
    """

    hint: str = ""
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    def params(self, question: Question) -> SamplingParams:
        """Sampling parameters of a question; independent of the other questions."""
        digest = hashlib.sha256(f"{self.seed}:{question.id}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") % SEEDS
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed)


def ask_all(engine: Engine, questions: Sequence[Question], asking: Asking, on_prediction: OnPrediction) -> None:
    """Ask all questions; calls `on_prediction` for each finished reply in this thread.

    An image that cannot be opened, or a prompt that does not fit, gives a prediction with its error. Anything else
    that fails (memory, a bug, the disk that `on_prediction` writes to, Ctrl-C) ends the run.
    """

    def tell(question: Question, said: Completion | FastVlmError) -> None:
        if isinstance(said, FastVlmError):
            on_prediction(question, Prediction(question.id, "", "error", str(said)))
        else:
            on_prediction(question, Prediction(question.id, said.text.strip(), said.finish_reason))

    answer_all(engine, questions, lambda question: messages_of(question, asking.hint), asking.params, tell)


def answer_all(
    engine: Engine,
    items: Sequence[T],
    prompt_of: Callable[[T], Any],
    params_of: Callable[[T], SamplingParams],
    on_reply: Callable[[T, Completion | FastVlmError], None],
) -> None:
    """Generate completions for items of any type.

    Args:
        engine: must not be used by others meanwhile.
        items: what is asked about, in the order in which they are let in.
        prompt_of: messages of an item; called in another thread, a few items ahead.
        params_of: settings of an item.
        on_reply: gets each item with its completion, or with the error for which it could not be asked.
    """
    work = _Work(engine, iter(items), prompt_of)
    most = engine.num_slots + min(1, engine.max_waiting)  # one waits, and is let in as soon as a slot is free
    try:
        while True:
            while work.make_ready() and len(work.running) < most:
                item, prepared = work.ready.popleft()
                try:
                    work.running[engine.submit(prepared.result(), params_of(item))] = item
                except FastVlmError as error:
                    on_reply(item, error)
            if not work.running:
                return
            for item, completion in work.step():
                on_reply(item, completion)
    finally:
        work.close()


@dataclass
class _Work(Generic[T]):
    """Items in preparation and items in the engine."""

    engine: Engine
    waiting: Iterator[T]
    prompt_of: Callable[[T], Any]
    ready: deque[tuple[T, Future[PromptInputs]]] = field(default_factory=deque)
    running: dict[int, T] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fastvlm-eval"), repr=False
    )

    def make_ready(self) -> bool:
        """Start preparing images for as many items as there are slots; return False if nothing is left."""
        while len(self.ready) < self.engine.num_slots:
            for item in self.waiting:
                self.ready.append((item, self.pool.submit(self._prepared, item)))
                break
            else:
                break
        return bool(self.ready)

    def _prepared(self, item: T) -> PromptInputs:
        return self.engine.prepare(self.prompt_of(item))

    def step(self) -> list[tuple[T, Completion]]:
        """Run one engine step and yield what it finished. Raises the engine's error."""
        finished: list[tuple[T, Completion]] = []
        for event in self.engine.step():
            if event.finish_reason is None or event.request_id not in self.running:
                continue
            item = self.running.pop(event.request_id)
            if event.error is not None:
                raise event.error
            assert event.completion is not None  # noqa: S101 - the last event has it
            finished.append((item, event.completion))
        return finished

    def close(self) -> None:
        """Abort what is still running."""
        self.pool.shutdown(cancel_futures=True)
        for request_id in self.running:
            self.engine.cancel(request_id)
