"""Token sampling: greedy choice, filters and random draws from the logits.

The filters follow transformers in meaning and order; V is the vocabulary size. A draw is the argmax of logits plus
Gumbel noise, which has the probabilities of softmax. Each request has its own generator and draws one number per
vocabulary entry, so its noise depends on the seed alone, not on the batch. The logits of a batch may differ in their
last bits from those of a single row, which changes a draw only where two tokens tie to those bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvlm.engine.types import SamplingParams, TokenLogprobs
from fastvlm.model import finite

_SORTED_FIRST = (256, 4096)  # top-p rarely needs more sorted tokens; if it does, all are sorted


@dataclass(frozen=True)
class SampledToken:
    """A token and, if requested, its log probabilities."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class TokenGuide(Protocol):
    """Restricts the next token of one reply, e.g. by a grammar. Methods must not raise: requests share a step."""

    def allowed_mask(self) -> Tensor:
        """Bool (V,) on the CPU, True where a token is allowed; at least one is."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token."""
        ...

    def forced_tokens(self) -> list[int]:
        """The next tokens, as far as no others are allowed; they are computed together."""
        ...


class Sampler:
    """Samples the tokens of one request: its settings, random generator and the tokens that are penalized.

    Args:
        params: the settings.
        prompt_ids: token ids of the prompt; the repetition penalty counts them.
        device: device of the logits.
        guide: masks tokens before any filter; log probabilities are those of the unmasked model.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        device: torch.device | str = "cpu",
        guide: TokenGuide | None = None,
    ) -> None:
        self.params = params
        self._guide = guide
        self._generator: torch.Generator | None = None
        if not params.is_greedy:
            self._generator = torch.Generator(device)
            _ = self._generator.seed() if params.seed is None else self._generator.manual_seed(params.seed)
        self._seen: set[int] = set()
        self._seen_ids: Tensor | None = None
        if params.repetition_penalty != 1:
            self._seen = set(prompt_ids)
            self._seen_ids = torch.tensor(sorted(self._seen), dtype=torch.int64, device=device)

    @property
    def is_plain(self) -> bool:
        """True if the argmax is all that is needed."""
        is_likeliest = self.params.is_greedy and self._seen_ids is None and self._guide is None
        return is_likeliest and self.params.logprobs is None

    def pick(self, logits: Tensor) -> SampledToken:
        """The next token after `logits` (V,)."""
        logits = logits.float()
        scores = filter_logits(self._guided(logits), self.params, self._seen_ids)
        if self._generator is not None:
            scores = scores + gumbel_noise(scores, self._generator)
        token_id = _likeliest(scores)
        self._remember(token_id)
        count = self.params.logprobs
        return SampledToken(token_id, None if count is None else _logprobs(logits, token_id, count))

    def _guided(self, logits: Tensor) -> Tensor:
        """`logits` (V,) with -inf where the guide forbids the token."""
        if self._guide is None:
            return logits
        return logits.masked_fill(~self._guide.allowed_mask().to(logits.device), -torch.inf)

    def _remember(self, token_id: int) -> None:
        if self._guide is not None:
            self._guide.accept(token_id)
        if self._seen_ids is not None and token_id not in self._seen:
            self._seen.add(token_id)
            self._seen_ids = torch.cat([self._seen_ids, self._seen_ids.new_tensor([token_id])])


class StepSampler:
    """Samples from the rows of one step's logits; one transfer serves all plain samplers.

    Args:
        logits: (B, V) of any floating dtype.

    Attributes:
        is_finite: for each row, whether it has neither NaN nor infinity.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits.float()  # once, for the check and for sampling
        self._likeliest: list[int] | None = None
        self.is_finite = finite.rows_with_finite_logits(self._logits)

    def pick(self, row: int, sampler: Sampler) -> SampledToken:
        """The token that `sampler` gives after this row of the logits."""
        if not sampler.is_plain:
            return sampler.pick(self._logits[row])
        if self._likeliest is None:
            self._likeliest = _likeliest(self._logits)
        return SampledToken(self._likeliest[row])


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise (V,), shape and device as `like`; -inf with probability 2^-24 (the token cannot win)."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return uniform.log_().neg_().log_().neg_()


def _likeliest(logits: Tensor) -> Any:
    """Index of the maximum of (V,), or of each row of (B, V); the first one if tied."""
    if logits.device.type == "cpu":  # NumPy's argmax is 5 (float32) to 20 (bfloat16) times as fast as torch's
        return logits.float().numpy().argmax(-1).tolist()
    return logits.argmax(-1).tolist()


def filter_logits(logits: Tensor, params: SamplingParams, seen_ids: Tensor | None = None) -> Tensor:
    """Logits (V,) float32 after the filters of `params`; -inf where a token is excluded.

    Args:
        logits: (V,) float32, not modified.
        params: temperature and filters; at temperature 0 only the repetition penalty applies.
        seen_ids: distinct token ids (K,) int64 of prompt and reply.
    """
    if params.repetition_penalty != 1 and seen_ids is not None:
        logits = _penalized(logits, seen_ids, params.repetition_penalty)
    if params.is_greedy:
        return logits
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
    if params.top_p < 1:
        logits = _within_top_p(logits, params.top_p)
    if params.min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < params.min_p * probabilities.max(), -torch.inf)
    return logits


def _penalized(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    scores = logits[seen_ids]
    scores = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits.index_copy(0, seen_ids, scores)


def _within_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Exclude the tokens after those that reach `top_p` in total; the likeliest always stays."""
    probabilities = logits.softmax(-1)
    values, ids = _sorted(probabilities, top_p)
    is_kept = values.cumsum(-1) - values < top_p
    is_kept[0] = True
    kept = ids[is_kept]
    return torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])


def _sorted(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that sum to at least `top_p`, or all: (probabilities, ids), descending."""
    for count in _SORTED_FIRST:
        if count < len(probabilities):
            values, ids = probabilities.topk(count)
            if float(values.sum()) >= top_p:
                return values, ids
    values, ids = probabilities.sort(descending=True, stable=True)
    return values, ids


def _logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(min(count, len(logprobs)))
    return TokenLogprobs(float(logprobs[token_id]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
