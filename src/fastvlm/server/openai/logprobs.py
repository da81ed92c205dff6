"""Formats log probabilities: each token as text and bytes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer

from fastvlm.engine.types import TokenLogprobs
from fastvlm.processing.tokenizer import TokenizerLike
from fastvlm.server.openai.schemas import TokenLogprob, TopLogprob

_LOWEST = -9999.0  # OpenAI's value for a token that cannot come: JSON has no infinity


class LogprobFormatter:
    """Formats log probabilities of one model's tokens.

    Args:
        tokens: llguidance's view of the tokenizer.
        tokenizer: the model's.
        end_ids: tokens that end a reply and are not part of it.
    """

    def __init__(self, tokens: LLTokenizer, tokenizer: TokenizerLike, end_ids: Collection[int]) -> None:
        self._tokens, self.end_ids = tokens, frozenset(end_ids)
        self._names, self._num_tokens = tokenizer.backend_tokenizer, len(tokenizer)

    def entry(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        """One entry of a chat's `logprobs.content`."""
        top = [TopLogprob(**self._fields(token, value)) for token, value in logprobs.top]
        return TokenLogprob(**self._fields(token_id, logprobs.token), top_logprobs=top)

    def _fields(self, token_id: int, value: float) -> dict[str, Any]:
        data = self._bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(value, _LOWEST), "bytes": list(data)}

    def _bytes(self, token_id: int) -> bytes:
        """The bytes of a token; a special token's are its name, those of a padding row of the head are none."""
        if token_id >= self._num_tokens:
            return b""
        if self._tokens.is_special_token(token_id):
            return str(self._names.id_to_token(token_id)).encode()
        return bytes(self._tokens.decode_bytes([token_id]))
