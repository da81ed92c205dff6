"""Formats log probabilities: each token as text and bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from llguidance import LLTokenizer
from pydantic import BaseModel

from fastvlm.engine.types import TokenLogprobs
from fastvlm.processing.tokenizer import TokenizerLike

_LOWEST = -9999.0  # OpenAI's value for a token that cannot come: JSON has no infinity


class TopLogprob(BaseModel):
    """A candidate token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The chosen token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class LogprobFormatter:
    """Formats log probabilities of one model's tokens.

    Args:
        tokens: llguidance's view of the tokenizer.
        tokenizer: the model's.
        end_ids: tokens that end a reply and are not part of it.
    """

    def __init__(self, tokens: LLTokenizer, tokenizer: TokenizerLike, end_ids: Collection[int]) -> None:
        self._tokens, self._tokenizer, self._end_ids = tokens, tokenizer, frozenset(end_ids)

    def entries(self, pairs: Iterable[tuple[int, TokenLogprobs]]) -> list[TokenLogprob]:
        """One entry for each (token id, log probabilities), except for end tokens."""
        return [
            TokenLogprob(
                **self._fields(token_id, logprobs.token),
                top_logprobs=[TopLogprob(**self._fields(token, value)) for token, value in logprobs.top],
            )
            for token_id, logprobs in pairs
            if token_id not in self._end_ids
        ]

    def _fields(self, token_id: int, value: float) -> dict[str, Any]:
        data = self._bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(value, _LOWEST), "bytes": list(data)}

    def _bytes(self, token_id: int) -> bytes:
        """The bytes of a token; a special token's are its name, those of a padding row of the head are none."""
        if token_id >= len(self._tokenizer):
            return b""
        if self._tokens.is_special_token(token_id):
            return str(self._tokenizer.backend_tokenizer.id_to_token(token_id)).encode()
        return bytes(self._tokens.decode_bytes([token_id]))
