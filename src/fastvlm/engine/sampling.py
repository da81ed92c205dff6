"""Which token comes next: the one place where it is decided.

Filters are transformers' own in meaning and order; V is the vocabulary. A draw is the largest of logit plus Gumbel
noise, which has the probabilities of softmax. The noise comes from a generator of the request's own, one number for
each token of the vocabulary, so it depends on the seed alone and not on what else is in the batch. The logits may: a
product of several rows differs in its last bits from that of one. That moves a draw only where two tokens tie to those
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvlm.engine.types import SamplingParams, TokenLogprobs

__all__ = ["Picked", "Sampler", "TokenGuide", "filter_logits", "gumbel_noise", "pick_tokens"]

_SORTED_FIRST = (256, 4096)  # top-p rarely needs more of the vocabulary in order; if it does, all of it is sorted


@dataclass(frozen=True)
class Picked:
    """A token and, if they were asked for, the log probabilities at its place."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class TokenGuide(Protocol):
    """Says which tokens may come next in one reply: a grammar, say. Neither method may raise: others share the step."""

    def allowed(self) -> Tensor:
        """Bool (V,) on the CPU, True where a token may come; at least one may."""
        ...

    def took(self, token_id: int) -> None:
        """Note the token that came."""
        ...


class Sampler:
    """What one request needs for picking: its settings, its random numbers, the tokens that it may not repeat.

    Args:
        params: the settings.
        prompt_ids: token ids of the prompt; the repetition penalty counts them.
        device: where the logits are.
        guide: rules tokens out before any filter; the log probabilities stay the model's own.
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
        """True if the likeliest token is all that is wanted."""
        is_likeliest = self.params.is_greedy and self._seen_ids is None and self._guide is None
        return is_likeliest and self.params.logprobs is None

    def pick(self, logits: Tensor) -> Picked:
        """The next token after `logits` (V,)."""
        logits = logits.float()
        scores = filter_logits(self._guided(logits), self.params, self._seen_ids)
        if self._generator is not None:
            scores = scores + gumbel_noise(scores, self._generator)
        token_id = _likeliest(scores)
        self._remember(token_id)
        count = self.params.logprobs
        return Picked(token_id, None if count is None else _logprobs(logits, token_id, count))

    def _guided(self, logits: Tensor) -> Tensor:
        """`logits` (V,), -inf where the guide lets no token come."""
        if self._guide is None:
            return logits
        return logits.masked_fill(~self._guide.allowed().to(logits.device), -torch.inf)

    def _remember(self, token_id: int) -> None:
        if self._guide is not None:
            self._guide.took(token_id)
        if self._seen_ids is not None and token_id not in self._seen:
            self._seen.add(token_id)
            self._seen_ids = torch.cat([self._seen_ids, self._seen_ids.new_tensor([token_id])])


def pick_tokens(logits: Tensor, samplers: Sequence[Sampler]) -> list[Picked]:
    """The next token of each row of `logits` (B, V), by its own sampler; one transfer for all that are plain."""
    likeliest: list[int] = []
    if any(sampler.is_plain for sampler in samplers):
        likeliest = _likeliest(logits)
    return [
        Picked(likeliest[row]) if sampler.is_plain else sampler.pick(logits[row])
        for row, sampler in enumerate(samplers)
    ]


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise (V,) of the shape and device of `like`; -inf, once in 2^24, for a token that cannot win."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return uniform.log_().neg_().log_().neg_()


def _likeliest(logits: Tensor) -> Any:
    """Index of the largest of (V,), or of each row of (B, V); the first of several."""
    if logits.device.type == "cpu":  # NumPy's search is 5 (float32) to 20 (bfloat16) times as fast as torch's
        return logits.float().numpy().argmax(-1).tolist()
    return logits.argmax(-1).tolist()


def filter_logits(logits: Tensor, params: SamplingParams, seen_ids: Tensor | None = None) -> Tensor:
    """Logits (V,) float32 as `params` change them; -inf where a token is ruled out.

    Args:
        logits: (V,) float32, left as they are.
        params: temperature and filters; at temperature 0 only the repetition penalty counts.
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
    """Rule out the tokens before which the likelier ones hold `top_p` already; the likeliest always stays."""
    probabilities = logits.softmax(-1)
    values, ids = _sorted(probabilities, top_p)
    is_kept = values.cumsum(-1) - values < top_p
    is_kept[0] = True
    kept = ids[is_kept]
    return torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])


def _sorted(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that hold at least `top_p`, or all: (probabilities, ids), descending."""
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
