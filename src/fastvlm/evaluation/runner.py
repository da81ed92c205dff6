"""Questions through the engine: every slot busy, the next pictures made ready meanwhile, failures told apart.

What is asked when depends on the questions and on the engine's slots alone, not on how fast anything is, so that two
runs put the same requests together.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fastvlm.engine.engine import Engine
from fastvlm.engine.prepared import PreparedPrompt
from fastvlm.engine.types import SEEDS, SamplingParams, TokenEvent
from fastvlm.errors import FastVlmError
from fastvlm.evaluation.predictions import Prediction
from fastvlm.evaluation.questions import Question, messages_of

__all__ = ["Asking", "ask_all"]

OnPrediction = Callable[[Question, Prediction], None]
_Ready = deque[tuple[Question, "Future[PreparedPrompt]"]]


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

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
        """The engine's settings for a question; the same whatever else is asked."""
        digest = hashlib.sha256(f"{self.seed}:{question.id}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") % SEEDS
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=seed)


def ask_all(engine: Engine, questions: Sequence[Question], asking: Asking, on_prediction: OnPrediction) -> None:
    """Ask all questions; `on_prediction` gets each reply as it is finished, in this thread.

    A picture that cannot be opened, or a prompt that does not fit, gives a prediction with its error. Anything else
    that fails (memory, a bug, the disk that `on_prediction` writes to, Ctrl-C) ends the run.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="fastvlm-eval")
    waiting, ready, running = iter(questions), _Ready(), dict[int, Question]()
    most = engine.num_slots + min(1, engine.max_waiting)  # one waits, and is let in as soon as a slot is free
    try:
        while True:
            _make_ready(engine, pool, waiting, ready, asking)
            while ready and len(running) < most:
                _submit(engine, *ready.popleft(), asking, running, on_prediction)
                _make_ready(engine, pool, waiting, ready, asking)
            if not running:
                return
            for event in engine.step():
                if event.finish_reason is not None and event.request_id in running:
                    question = running.pop(event.request_id)
                    on_prediction(question, _finished(question, event))
    finally:
        pool.shutdown(cancel_futures=True)
        for request_id in running:
            engine.cancel(request_id)


def _make_ready(
    engine: Engine, pool: ThreadPoolExecutor, waiting: Iterator[Question], ready: _Ready, asking: Asking
) -> None:
    """Let pictures be opened and resized for as many questions as there are slots."""
    while len(ready) < engine.num_slots:
        question = next(waiting, None)
        if question is None:
            return
        ready.append((question, pool.submit(_prepared, engine, question, asking.hint)))


def _prepared(engine: Engine, question: Question, hint: str) -> PreparedPrompt:
    return engine.prepare(messages_of(question, hint))


def _submit(
    engine: Engine,
    question: Question,
    prepared: Future[PreparedPrompt],
    asking: Asking,
    running: dict[int, Question],
    on_prediction: OnPrediction,
) -> None:
    try:
        running[engine.submit(prepared.result(), asking.params(question))] = question
    except FastVlmError as error:
        on_prediction(question, Prediction(question.id, "", "error", str(error)))


def _finished(question: Question, event: TokenEvent) -> Prediction:
    if event.error is not None:
        raise event.error
    assert event.completion is not None and event.finish_reason is not None  # noqa: S101 - the last event has both
    return Prediction(question.id, event.completion.text.strip(), event.finish_reason)
