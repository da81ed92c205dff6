"""One request's replies from one engine: prepared once, made side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from fastvlm.engine.prompt_inputs import PreparedPrompt
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.server.http.errors import ApiError
from fastvlm.server.openai.structured_output import GrammarGuide
from fastvlm.server.replicas import Replica

__all__ = ["Choice", "Totals", "replies"]


@dataclass(frozen=True)
class Choice:
    """One reply that is asked for."""

    prompt: PreparedPrompt
    params: SamplingParams
    guide: GrammarGuide | None = None


@dataclass
class Totals:
    """Completions of a request, as they end; one prompt of several choices counts once."""

    completions: list[Completion] = field(default_factory=list)
    prompts: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, choice: Choice, completion: Completion) -> None:
        """Count a reply that has ended."""
        usage = completion.usage
        self.completions.append(completion)
        counts = (usage.prompt_tokens, usage.cached_prompt_tokens, usage.image_tokens)
        self.prompts.setdefault(id(choice.prompt), counts)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts."""
        return sum(tokens for tokens, _, _ in self.prompts.values())

    @property
    def cached_tokens(self) -> int:
        """Of these, not computed again."""
        return sum(cached for _, cached, _ in self.prompts.values())

    @property
    def image_tokens(self) -> int:
        """Of these, images'."""
        return sum(image for _, _, image in self.prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens of the replies, end tokens included."""
        return sum(completion.usage.completion_tokens for completion in self.completions)


@asynccontextmanager
async def replies(
    replica: Replica, choices: Sequence[Choice], totals: Totals
) -> AsyncIterator[AsyncGenerator[tuple[int, TokenEvent]]]:
    """Events of all choices as they come, with the choice's index; on leaving, what still runs is cancelled.

    What fails for one choice is raised, and ends the others. `totals` gets each reply that ends.
    """
    inbox: asyncio.Queue[tuple[int, TokenEvent] | Exception] = asyncio.Queue()
    pumps = [asyncio.ensure_future(_pump(replica, index, one, inbox)) for index, one in enumerate(choices)]
    events = _events(choices, inbox, totals)
    try:
        yield events
    finally:
        await events.aclose()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    replica: Replica, index: int, choice: Choice, inbox: asyncio.Queue[tuple[int, TokenEvent] | Exception]
) -> None:
    try:
        async with aclosing(replica.async_engine.stream(choice.prompt, choice.params, guide=choice.guide)) as events:
            async for event in events:
                inbox.put_nowait((index, event))
    except Exception as error:  # noqa: BLE001 - the reader of the inbox raises it
        inbox.put_nowait(error)


async def _events(
    choices: Sequence[Choice], inbox: asyncio.Queue[tuple[int, TokenEvent] | Exception], totals: Totals
) -> AsyncGenerator[tuple[int, TokenEvent]]:
    while len(totals.completions) < len(choices):
        item = await inbox.get()
        if isinstance(item, Exception):
            raise item
        index, event = item
        if event.completion is not None:
            guide = choices[index].guide
            if guide is not None and guide.error is not None:
                raise _cannot_follow(guide.error)
            totals.add(choices[index], event.completion)
        yield index, event


def _cannot_follow(error: str) -> ApiError:
    """The schema's grammar failed in the middle of a reply."""
    reason = error.strip().partition("\n")[0]
    return ApiError(
        400,
        f"The schema cannot be enforced: while the reply was generated, its grammar failed ({reason}). Simplify it.",
        param="response_format.json_schema.schema",
        code="invalid_json_schema",
    )
