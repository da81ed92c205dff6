"""Events of the engine -> replies in OpenAI's words: chats and completions, whole and in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fastvlm.engine.types import Completion, TokenEvent, TokenLogprobs
from fastvlm.server.openai.generation import Totals
from fastvlm.server.openai.logprobs import LogprobFormatter

__all__ = ["ChatFormatter", "CompletionFormatter", "ReplyFormatter", "usage"]


class ReplyFormatter(Protocol):
    """Formats the replies of one request."""

    def opening(self, index: int) -> Mapping[str, Any] | None:
        """An event before a choice's first text, if there is one."""

    def piece(self, index: int, event: TokenEvent) -> Mapping[str, Any] | None:
        """What one token adds to a stream; None for nothing."""

    def whole(self, completions: Sequence[Completion], totals: Totals) -> Mapping[str, Any]:
        """The reply in one piece."""

    def closing(self, totals: Totals) -> Mapping[str, Any]:
        """A stream's last event, with the usage."""


def usage(totals: Totals) -> dict[str, Any]:
    """Tokens of a request."""
    return {
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": totals.cached_tokens, "image_tokens": totals.image_tokens},
    }


class _Common:
    """What both formats share.

    Args:
        model: as clients call it.
        names: of tokens.
        has_usage: a stream's events have `usage`, null until the last.
    """

    prefix, whole_object, piece_object = "", "", ""

    def __init__(self, model: str, names: LogprobFormatter, *, has_usage: bool) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._names, self._has_usage = names, has_usage
        self._pending: dict[int, list[tuple[int, TokenLogprobs]]] = {}  # of tokens whose text is not complete yet

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        null_usage = {"usage": None} if self._has_usage else {}
        return {**self._head, "object": self.piece_object, "choices": choices, **null_usage}

    def closing(self, totals: Totals) -> Mapping[str, Any]:
        """A stream's last event, with the usage."""
        return {**self._event([]), "usage": usage(totals)}

    def _collected(self, index: int, event: TokenEvent) -> list[tuple[int, TokenLogprobs]] | None:
        """Log probabilities up to this event, if it is to be sent; None if it has nothing to tell yet."""
        pending = self._pending.setdefault(index, [])
        if event.logprobs is not None and event.token_id is not None:
            pending.append((event.token_id, event.logprobs))
        if not event.text and event.finish_reason is None:
            return None
        self._pending[index] = []
        return pending

    def _shown(self, pairs: Sequence[tuple[int, TokenLogprobs]]) -> list[tuple[int, TokenLogprobs]]:
        return [pair for pair in pairs if pair[0] not in self._names.end_ids]

    def _whole(self, choices: list[dict[str, Any]], totals: Totals) -> dict[str, Any]:
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": usage(totals)}


class ChatFormatter(_Common):
    """/v1/chat/completions."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> Mapping[str, Any] | None:
        """Whose turn it is."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def piece(self, index: int, event: TokenEvent) -> Mapping[str, Any] | None:
        """What one token adds to a stream; None for nothing."""
        pairs = self._collected(index, event)
        if pairs is None:
            return None
        choice = {
            "index": index,
            "delta": {"content": event.text} if event.text else {},
            "logprobs": self._logprobs(pairs) if event.logprobs is not None else None,
            "finish_reason": event.finish_reason,
        }
        return self._event([choice])

    def whole(self, completions: Sequence[Completion], totals: Totals) -> Mapping[str, Any]:
        """The reply in one piece."""
        choices = []
        for index, one in enumerate(completions):
            pairs = None if one.logprobs is None else list(zip(one.token_ids, one.logprobs, strict=True))
            message = {"role": "assistant", "content": one.text, "refusal": None}
            logprobs = None if pairs is None else self._logprobs(pairs)
            choices.append(
                {"index": index, "message": message, "logprobs": logprobs, "finish_reason": one.finish_reason}
            )
        return self._whole(choices, totals)

    def _logprobs(self, pairs: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        entries = [self._names.logprob(token, one).model_dump() for token, one in self._shown(pairs)]
        return {"content": entries, "refusal": None}


class CompletionFormatter(_Common):
    """/v1/completions."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, names: LogprobFormatter, *, has_usage: bool) -> None:
        super().__init__(model, names, has_usage=has_usage)
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> Mapping[str, Any] | None:  # noqa: ARG002 - the formats' common shape
        """Nothing."""
        return None

    def piece(self, index: int, event: TokenEvent) -> Mapping[str, Any] | None:
        """What one token adds to a stream; None for nothing."""
        pairs = self._collected(index, event)
        if pairs is None:
            return None
        logprobs = self._logprobs(index, pairs) if event.logprobs is not None else None
        return self._event(
            [{"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish_reason}]
        )

    def whole(self, completions: Sequence[Completion], totals: Totals) -> Mapping[str, Any]:
        """The reply in one piece."""
        choices = []
        for index, one in enumerate(completions):
            pairs = None if one.logprobs is None else list(zip(one.token_ids, one.logprobs, strict=True))
            logprobs = None if pairs is None else self._logprobs(index, pairs)
            choices.append({"index": index, "text": one.text, "logprobs": logprobs, "finish_reason": one.finish_reason})
        return self._whole(choices, totals)

    def _logprobs(self, index: int, pairs: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        shown = [self._names.logprob(token, one) for token, one in self._shown(pairs)]
        offset, offsets = self._offsets.get(index, 0), []
        for entry in shown:
            offsets.append(offset)
            offset += len(entry.token)
        self._offsets[index] = offset
        return {
            "tokens": [entry.token for entry in shown],
            "token_logprobs": [entry.logprob for entry in shown],
            "top_logprobs": [{top.token: top.logprob for top in entry.top_logprobs} for entry in shown],
            "text_offset": offsets,
        }
