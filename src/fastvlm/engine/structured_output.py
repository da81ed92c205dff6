"""Structured output: a JSON schema as a grammar that masks the tokens of each step (llguidance).

JSON is generated without white space between its parts, because a model that may write spaces can write them forever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from fastvlm.errors import SchemaError
from fastvlm.processing.tokenizer import TokenizerLike

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # declared in its stub only

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

    def copy(self) -> GrammarGuide:
        """The same state, for another reply."""
        return GrammarGuide(self._matcher.deep_copy(), self._vocab_size, self._end_ids)

    def allowed_mask(self) -> Tensor:
        """Bool (V,), True for tokens allowed next: only end tokens once the grammar is complete or has failed."""
        words = torch.empty((self._vocab_size + 31) // 32, dtype=torch.int32)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.nbytes)
        if self._matcher.is_error():
            return torch.zeros(self._vocab_size, dtype=torch.bool).index_fill_(0, torch.tensor(self._end_ids), True)
        bits = words.view(torch.uint8)[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)) & 1
        return bits.reshape(-1)[: self._vocab_size].bool()

    def accept(self, token_id: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token_id)

    def forced_tokens(self) -> list[int]:
        """The tokens that must come next, such as braces and key names; none where there is a choice."""
        return [] if self._matcher.is_error() else self._matcher.compute_ff_tokens()

    @property
    def error(self) -> str | None:
        """Why the grammar failed: it allows no token, or became too large; None while it works."""
        return self._matcher.get_error() if self._matcher.is_error() else None


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer.

    Args:
        tokenizer: with a `backend_tokenizer` of the `tokenizers` library.
        vocab_size: width of the logits.
        end_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: TokenizerLike, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._vocab_size, self._end_ids = vocab_size, list(end_ids)
        self.tokens = LLTokenizer(_literal_tokenizer(tokenizer), n_vocab=vocab_size, eos_token=self._end_ids)
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, schema: Mapping[str, Any]) -> GrammarGuide:
        """The guide of a reply that is a JSON document of `schema`; ``{"type": "object"}`` for any object.

        Raises:
            SchemaError: the schema is invalid, too large, or cannot be enforced.
        """
        return GrammarGuide(self._matcher(schema), self._vocab_size, self._end_ids)

    def _matcher(self, schema: Mapping[str, Any]) -> LLMatcher:
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA_CHARACTERS:
            raise _bad_schema(f"it has {len(text)} characters, the limit is {_MAX_SCHEMA_CHARACTERS}")
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
            matcher = LLMatcher(self.tokens, grammar, log_level=_QUIET, limits=self._limits)
        except ValueError as error:
            raise _bad_schema(str(error)) from error
        first = GrammarGuide(matcher.deep_copy(), self._vocab_size, self._end_ids)
        first.allowed_mask()  # llguidance finds some impossible schemas only when it computes the first mask
        if first.error is not None:
            raise _bad_schema(first.error)
        return matcher


def _literal_tokenizer(tokenizer: TokenizerLike) -> str:
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


def _bad_schema(error: str) -> SchemaError:
    reason = error.strip().partition("\n")[0]
    if reason == _EMPTY_GRAMMAR:
        reason = "no finite document satisfies it (does a $ref refer to itself without an alternative?)"
    return SchemaError(f"The schema cannot be enforced: {reason.rstrip('.')}.")
