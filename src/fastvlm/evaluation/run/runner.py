"""Runner: keeps every engine slot busy, prepares the next images meanwhile, and records failures per question.

The order of requests depends on the questions and on the engine's slots alone, not on how fast anything is, so that two
runs put the same requests together.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastvlm.engine.engine import Engine
from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.types import SEEDS, Completion, SamplingParams
from fastvlm.errors import FastVlmError
from fastvlm.evaluation.questions import Question, messages_of
from fastvlm.evaluation.run.predictions import Prediction

T = TypeVar("T")
OnPrediction = Callable[[Question, Prediction], None]


@dataclass(frozen=True)
class GenerationOptions:
    """Prompt and sampling settings of an evaluation.

    Args:
        hint: the last line of every question.
        max_new_tokens: after which a reply is cut.
        temperature: 0 for greedy decoding.
        seed: of the whole run; the seed of each question is made of it and the question's id.
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


def ask_all(
    engine: Engine, questions: Sequence[Question], options: GenerationOptions, on_prediction: OnPrediction
) -> None:
    """Ask all questions; calls `on_prediction` for each finished reply in this thread.

    An image that cannot be opened, or a prompt that does not fit, gives a prediction with its error. Anything else
    that fails (memory, a bug, the disk that `on_prediction` writes to, Ctrl-C) ends the run.
    """

    def on_reply(question: Question, reply: Completion | FastVlmError) -> None:
        if isinstance(reply, FastVlmError):
            on_prediction(question, Prediction(question.id, "", "error", str(reply)))
        else:
            on_prediction(question, Prediction(question.id, reply.text.strip(), reply.finish_reason))

    answer_all(engine, questions, lambda question: messages_of(question, options.hint), options.params, on_reply)


def answer_all(
    engine: Engine,
    items: Iterable[T],
    prompt_of: Callable[[T], Any],
    params_of: Callable[[T], SamplingParams],
    on_reply: Callable[[T, Completion | FastVlmError], None],
) -> None:
    """Generate completions for items of any type.

    Args:
        engine: must not be used by others meanwhile.
        items: what is asked about, in the order of submission.
        prompt_of: messages of an item; called in another thread, a few items ahead.
        params_of: settings of an item.
        on_reply: gets each item with its completion, or with the error for which it could not be asked.
    """
    running: dict[int, T] = {}
    most = engine.num_slots + min(1, engine.max_waiting)  # one waits, and takes the next free slot at once
    pool = ThreadPoolExecutor(1, thread_name_prefix="fastvlm-eval")
    prepared = _prepared_ahead(items, lambda item: pool.submit(_prepare, engine, prompt_of, item), engine.num_slots)
    try:
        while True:
            while len(running) < most and (following := next(prepared, None)) is not None:
                item, prompt = following
                try:
                    running[engine.submit(prompt.result(), params_of(item))] = item
                except FastVlmError as error:
                    on_reply(item, error)
            if not running:
                return
            for item, completion in _step(engine, running):
                on_reply(item, completion)
    finally:
        pool.shutdown(cancel_futures=True)
        for request_id in running:
            engine.cancel(request_id)


def _prepare(engine: Engine, prompt_of: Callable[[T], Any], item: T) -> PromptInputs:
    return engine.prepare(prompt_of(item))


def _prepared_ahead(
    items: Iterable[T], prepare: Callable[[T], Future[PromptInputs]], num_ahead: int
) -> Iterator[tuple[T, Future[PromptInputs]]]:
    """Each item with its prompt; the next `num_ahead` are in preparation."""
    ahead: deque[tuple[T, Future[PromptInputs]]] = deque()
    for item in items:
        ahead.append((item, prepare(item)))
        if len(ahead) > num_ahead:
            yield ahead.popleft()
    yield from ahead


def _step(engine: Engine, running: dict[int, T]) -> list[tuple[T, Completion]]:
    """Run one engine step; remove from `running` what it finished, and return it. Raises the engine's error."""
    finished: list[tuple[T, Completion]] = []
    for event in engine.step():
        if event.finish_reason is None or event.request_id not in running:
            continue
        item = running.pop(event.request_id)
        if event.error is not None:
            raise event.error
        assert event.completion is not None  # noqa: S101 - the last event has it
        finished.append((item, event.completion))
    return finished
