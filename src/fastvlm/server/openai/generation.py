"""Generates the choices of one request in parallel on one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.structured_output import GrammarGuide
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.server.http.errors import ApiError
from fastvlm.server.replicas import Replica

_Events = AsyncGenerator[tuple[int, TokenEvent]]


@dataclass(frozen=True)
class Choice:
    """One reply of a request: its prompt and how it is sampled."""

    prompt: PromptInputs
    params: SamplingParams
    guide: GrammarGuide | None = None


@dataclass
class RequestUsage:
    """Token counts of a request's finished replies; a prompt of several choices counts once."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of the prompts that was not computed again
    image_tokens: int = 0  # visual tokens in the prompts
    completion_tokens: int = 0  # end tokens included
    completions: list[Completion] = field(default_factory=list)
    _prompts: set[int] = field(default_factory=set)  # identities of those that were counted

    def add(self, choice: Choice, completion: Completion) -> None:
        """Count a finished reply."""
        usage = completion.usage
        self.completions.append(completion)
        self.completion_tokens += usage.completion_tokens
        if id(choice.prompt) not in self._prompts:
            self._prompts.add(id(choice.prompt))
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_prompt_tokens
            self.image_tokens += usage.image_tokens


@asynccontextmanager
async def stream_choices(replica: Replica, choices: Sequence[Choice], usage: RequestUsage) -> AsyncIterator[_Events]:
    """(index, event) of all choices as they come, and `usage` counted; on exit, unfinished choices are cancelled.

    An exception of one choice is raised, and ends the others.
    """
    queue: asyncio.Queue[tuple[int, TokenEvent] | Exception] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_forward(replica, index, one, queue)) for index, one in enumerate(choices)]
    events = _merged(choices, queue, usage)
    try:
        yield events
    finally:
        await events.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    replica: Replica, index: int, choice: Choice, queue: asyncio.Queue[tuple[int, TokenEvent] | Exception]
) -> None:
    try:
        async with aclosing(replica.async_engine.stream(choice.prompt, choice.params, guide=choice.guide)) as events:
            async for event in events:
                queue.put_nowait((index, event))
    except Exception as error:  # noqa: BLE001 - raised by the reader of the queue
        queue.put_nowait(error)


async def _merged(
    choices: Sequence[Choice], queue: asyncio.Queue[tuple[int, TokenEvent] | Exception], usage: RequestUsage
) -> _Events:
    while len(usage.completions) < len(choices):
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        index, event = item
        if event.completion is not None:
            guide = choices[index].guide
            if guide is not None and guide.error is not None:
                raise _grammar_failed(guide.error)
            usage.add(choices[index], event.completion)
        yield index, event


def _grammar_failed(error: str) -> ApiError:
    reason = error.strip().partition("\n")[0]
    return ApiError(
        400,
        f"The schema cannot be enforced: while the reply was generated, its grammar failed ({reason}). Simplify it.",
        param="response_format.json_schema.schema",
        code="invalid_json_schema",
    )
