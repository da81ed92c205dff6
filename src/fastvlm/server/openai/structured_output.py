"""Structured output: `response_format` as a grammar that masks the tokens of each step (llguidance).

JSON is generated without white space between its parts, because a model that may write spaces can write them forever.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from fastvlm.server.http.errors import ApiError, invalid
from fastvlm.server.openai.schemas import PlainFormat, SchemaFormat

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # declared in its stub only

__all__ = ["GrammarCompiler", "GrammarGuide"]

logger = logging.getLogger("fastvlm.server")

_MAX_SCHEMA_CHARACTERS = 64 * 1024
_JSON: JsonCompileOptions = {"whitespace_flexible": False}
_QUIET = 0  # llguidance's log level
_HIDDEN = "\x00"  # prefix of special tokens' names: no JSON document has this character unescaped
_EMPTY_GRAMMAR = "NoExtensionBias"  # llguidance's error for a grammar that no document satisfies


class GrammarGuide:
    """The state of one reply in a grammar; a :class:`fastvlm.engine.sampling.TokenGuide`.

    Args:
        matcher: llguidance's, at the beginning of the grammar.
        vocab_size: V, width of the logits, which may be larger than the tokenizer's vocabulary.
        end_ids: tokens that end a reply: only they are allowed after the grammar has failed.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._matcher, self._vocab_size, self._end_ids = matcher, vocab_size, list(end_ids)

    def allowed(self) -> Tensor:
        """Bool (V,), True for tokens allowed next: only end tokens once the grammar is complete or has failed."""
        words = torch.empty((self._vocab_size + 31) // 32, dtype=torch.int32)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.nbytes)
        if self._matcher.is_error():
            return torch.zeros(self._vocab_size, dtype=torch.bool).index_fill_(0, torch.tensor(self._end_ids), True)
        bits = words.view(torch.uint8)[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)) & 1
        return bits.reshape(-1)[: self._vocab_size].bool()

    def took(self, token_id: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token_id)

    @property
    def error(self) -> str | None:
        """Why the grammar failed: it allows no token, or became too large; None while it works."""
        return self._matcher.get_error() if self._matcher.is_error() else None


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer.

    Args:
        tokenizer: transformers' fast tokenizer.
        vocab_size: width of the logits.
        end_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._vocab_size, self._end_ids = vocab_size, list(end_ids)
        self.tokens = LLTokenizer(_literal_tokenizer(tokenizer), n_vocab=vocab_size, eos_token=self._end_ids)
        self._limits = LLParserLimits(verbose_errors=False)

    async def make_guides(
        self, response_format: PlainFormat | SchemaFormat | None, count: int
    ) -> list[GrammarGuide] | list[None]:
        """One guide for each of `count` replies, compiled in another thread; None for free text.

        Raises:
            ApiError: the schema is invalid, too large, or cannot be enforced.
        """
        if response_format is None or response_format.type == "text":
            return [None] * count
        schema = (
            response_format.json_schema.schema_ if isinstance(response_format, SchemaFormat) else {"type": "object"}
        )
        matcher = await asyncio.to_thread(self._matcher, schema)
        matchers = [matcher, *(matcher.deep_copy() for _ in range(count - 1))]
        return [GrammarGuide(one, self._vocab_size, self._end_ids) for one in matchers]

    def _matcher(self, schema: dict[str, Any]) -> LLMatcher:
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA_CHARACTERS:
            raise _bad_schema(f"it has {len(text)} characters, the limit is {_MAX_SCHEMA_CHARACTERS}")
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
            matcher = LLMatcher(self.tokens, grammar, log_level=_QUIET, limits=self._limits)
        except ValueError as error:
            raise _bad_schema(str(error)) from error
        first = GrammarGuide(matcher.deep_copy(), self._vocab_size, self._end_ids)
        first.allowed()  # llguidance finds some impossible schemas only when it computes the first mask
        if first.error is not None:
            raise _bad_schema(first.error)
        return matcher


def _literal_tokenizer(tokenizer: Any) -> str:
    """The JSON of `tokenizer`, with special tokens renamed so that no text contains them.

    A schema's `const` of ``<|im_end|>`` is then written with ordinary tokens, not with the special token.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["padding"] = content["truncation"] = None
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"]:
        if token["special"]:
            name, token["content"] = token["content"], _HIDDEN + token["content"]
            if name in vocabulary:
                vocabulary[token["content"]] = vocabulary.pop(name)
    return json.dumps(content)


def _bad_schema(error: str) -> ApiError:
    reason = error.strip().partition("\n")[0]
    if reason == _EMPTY_GRAMMAR:
        reason = "no finite document satisfies it (does a $ref refer to itself without an alternative?)"
    return invalid(
        f"The schema cannot be enforced: {reason.rstrip('.')}.",
        param="response_format.json_schema.schema",
        code="invalid_json_schema",
    )
