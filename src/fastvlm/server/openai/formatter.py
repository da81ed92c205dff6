"""What the replies of chats and completions have in common, whole and streamed."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from fastvlm.engine.types import Completion, TokenEvent, TokenLogprobs, Usage
from fastvlm.server.http.errors import ApiError, error_body
from fastvlm.server.http.response_writer import json_bytes
from fastvlm.server.openai.logprobs import LogprobFormatter, TokenLogprob
from fastvlm.server.openai.sampling import SamplingRequest


class PromptDetails(BaseModel):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    image_tokens: int


class UsageReply(BaseModel):
    """Token counts of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ReplyObject(BaseModel):
    """What whole replies have in common."""

    id: str
    created: int
    model: str
    usage: UsageReply


class OpenAiFormatter(ABC):
    """Formats the replies to one request; see :class:`fastvlm.server.generation.ReplyFormatter`.

    Args:
        request: what the client asks for.
        logprobs: formats log probabilities.
    """

    id_prefix: ClassVar[str]
    reply_object: ClassVar[str]
    chunk_object: ClassVar[str]
    stream_type = "text/event-stream"

    def __init__(self, request: SamplingRequest, logprobs: LogprobFormatter) -> None:
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        self._has_usage = request.stream_options is not None and request.stream_options.include_usage
        self._entries = logprobs.entries
        self._pending: dict[int, list[tuple[int, TokenLogprobs]]] = {}  # tokens whose text is not complete yet

    def events(self, index: int, event: TokenEvent) -> bytes:
        """The events of one token."""
        data = b""
        if index not in self._pending and (first := self._first_delta()):
            data = self._event([_choice(index, first, None, None)])
        pending = self._pending.setdefault(index, [])
        if event.logprobs is not None and event.token_id is not None:
            pending.append((event.token_id, event.logprobs))
        if not event.text and event.finish_reason is None:
            return data
        self._pending[index] = []
        logprobs = None if event.logprobs is None else self._logprobs(index, self._entries(pending))
        return data + self._event([_choice(index, self._delta(event.text), logprobs, event.finish_reason)])

    def end(self, usage: Usage) -> bytes:
        """The usage if it was asked for, then `[DONE]`."""
        return (self._event([], _usage(usage)) if self._has_usage else b"") + b"data: [DONE]\n\n"

    def failure(self, error: ApiError) -> bytes:
        """An event with the error, and no `[DONE]`."""
        return b"data: " + json_bytes(error_body(error)) + b"\n\n"

    def reply(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        """The whole reply."""
        choices = []
        for index, one in enumerate(completions):
            pairs = None if one.logprobs is None else zip(one.token_ids, one.logprobs, strict=True)
            logprobs = None if pairs is None else self._logprobs(index, self._entries(pairs))
            choices.append(_choice(index, self._content(one.text), logprobs, one.finish_reason))
        return json_bytes({**self._head, "object": self.reply_object, "choices": choices, "usage": _usage(usage)})

    def _event(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        content = {**self._head, "object": self.chunk_object, "choices": choices}
        return b"data: " + json_bytes({**content, "usage": usage} if self._has_usage else content) + b"\n\n"

    def _first_delta(self) -> dict[str, Any]:
        """What begins each choice of a stream."""
        return {}

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """The text of a whole reply."""

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]:
        """A piece of text in a stream."""

    @abstractmethod
    def _logprobs(self, index: int, entries: list[TokenLogprob]) -> dict[str, Any]:
        """The log probabilities of some tokens of choice `index`."""


def _choice(
    index: int, content: Mapping[str, Any], logprobs: Mapping[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


def _usage(usage: Usage) -> dict[str, Any]:
    details = PromptDetails(cached_tokens=usage.cached_prompt_tokens, image_tokens=usage.image_tokens)
    return UsageReply(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=details,
    ).model_dump()
