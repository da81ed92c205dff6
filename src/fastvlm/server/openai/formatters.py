"""Formats the engine's events as OpenAI's responses: chats and completions, whole and streamed."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fastvlm.engine.types import Completion, TokenEvent, TokenLogprobs
from fastvlm.server.openai.generation import RequestUsage
from fastvlm.server.openai.logprobs import LogprobFormatter

_TokenList = Sequence[tuple[int, TokenLogprobs]]


def usage(counts: RequestUsage) -> dict[str, Any]:
    """The `usage` object of a response."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens, "image_tokens": counts.image_tokens},
    }


class ReplyFormatter(ABC):
    """Formats the replies to one request.

    Args:
        model: its name for clients.
        logprobs: formats log probabilities.
        has_usage: a stream's events have `usage`, null until the last.
    """

    id_prefix, response_object, chunk_object = "", "", ""

    def __init__(self, model: str, logprobs: LogprobFormatter, *, has_usage: bool) -> None:
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._entry, self._end_ids, self._has_usage = logprobs.entry, logprobs.end_ids, has_usage
        self._pending: dict[int, list[tuple[int, TokenLogprobs]]] = {}  # tokens whose text is not complete yet

    def first_chunk(self, index: int) -> Mapping[str, Any] | None:  # noqa: ARG002 - for subclasses
        """An event before a choice's first text; None if there is none."""
        return None

    def chunk(self, index: int, event: TokenEvent) -> Mapping[str, Any] | None:
        """The event of a stream for one token; None while its text is not complete."""
        pending = self._pending.setdefault(index, [])
        if event.logprobs is not None and event.token_id is not None:
            pending.append((event.token_id, event.logprobs))
        if not event.text and event.finish_reason is None:
            return None
        self._pending[index] = []
        logprobs = None if event.logprobs is None else self._logprobs(index, self._without_end(pending))
        return self._event([self._choice(index, self._delta(event.text), logprobs, event.finish_reason)])

    def usage_chunk(self, counts: RequestUsage) -> Mapping[str, Any]:
        """A stream's last event, with the usage."""
        return {**self._event([]), "usage": usage(counts)}

    def response(self, completions: Sequence[Completion], counts: RequestUsage) -> Mapping[str, Any]:
        """The whole response."""
        choices = []
        for index, one in enumerate(completions):
            logprobs = None
            if one.logprobs is not None:
                pairs = list(zip(one.token_ids, one.logprobs, strict=True))
                logprobs = self._logprobs(index, self._without_end(pairs))
            choices.append(self._choice(index, self._content(one.text), logprobs, one.finish_reason))
        return {**self._head, "object": self.response_object, "choices": choices, "usage": usage(counts)}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        null_usage = {"usage": None} if self._has_usage else {}
        return {**self._head, "object": self.chunk_object, "choices": choices, **null_usage}

    @staticmethod
    def _choice(
        index: int, content: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _without_end(self, pairs: _TokenList) -> _TokenList:
        return [pair for pair in pairs if pair[0] not in self._end_ids]

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """The text of a whole reply."""

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]:
        """A piece of text in a stream."""

    @abstractmethod
    def _logprobs(self, index: int, pairs: _TokenList) -> dict[str, Any]:
        """The log probabilities of some tokens of choice `index`."""


class ChatFormatter(ReplyFormatter):
    """/v1/chat/completions."""

    id_prefix, response_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_chunk(self, index: int) -> Mapping[str, Any]:
        """The role."""
        return self._event([self._choice(index, {"delta": _message("")}, None, None)])

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": _message(text)}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, index: int, pairs: _TokenList) -> dict[str, Any]:  # noqa: ARG002 - the base class's signature
        return {"content": [self._entry(token, one).model_dump() for token, one in pairs], "refusal": None}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None}


class CompletionFormatter(ReplyFormatter):
    """/v1/completions."""

    id_prefix, response_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, logprobs: LogprobFormatter, *, has_usage: bool) -> None:
        super().__init__(model, logprobs, has_usage=has_usage)
        self._offsets: dict[int, int] = {}

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _delta = _content

    def _logprobs(self, index: int, pairs: _TokenList) -> dict[str, Any]:
        entries = [self._entry(token, one) for token, one in pairs]
        offset, offsets = self._offsets.get(index, 0), []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry.token)
        self._offsets[index] = offset
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{top.token: top.logprob for top in entry.top_logprobs} for entry in entries],
            "text_offset": offsets,
        }
