"""Tokens as clients see them beside log probabilities: text, and the bytes that it is of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer

from fastvlm.engine.types import TokenLogprobs
from fastvlm.server.openai.schemas import TokenLogprob, TopLogprob

__all__ = ["LogprobFormatter"]

_LOWEST = -9999.0  # what OpenAI's API says for a token that cannot come: JSON has no infinity


class LogprobFormatter:
    """Names tokens.

    Args:
        tokens: llguidance's view of the tokenizer.
        tokenizer: transformers'.
        end_ids: tokens that end a reply, which are no part of it.
    """

    def __init__(self, tokens: LLTokenizer, tokenizer: Any, end_ids: Collection[int]) -> None:
        self._tokens, self._tokenizer, self.end_ids = tokens, tokenizer, frozenset(end_ids)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special one's are its name, a padding row's are none."""
        if token_id >= len(self._tokenizer):
            return b""
        if self._tokens.is_special_token(token_id):
            return str(self._tokenizer.convert_ids_to_tokens(token_id)).encode()
        return bytes(self._tokens.decode_bytes([token_id]))

    def text_of(self, token_id: int) -> str:
        """The token's text; U+FFFD where it is a part of a character."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def logprob(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        """One entry of a chat's `logprobs.content`."""
        top = [TopLogprob(**self._named(token, value)) for token, value in logprobs.top]
        return TokenLogprob(**self._named(token_id, logprobs.token), top_logprobs=top)

    def _named(self, token_id: int, value: float) -> dict[str, Any]:
        data = self.bytes_of(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(value, _LOWEST), "bytes": list(data)}
