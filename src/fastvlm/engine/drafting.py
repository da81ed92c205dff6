"""Speculative decoding without a second model: drafts of a reply's next tokens, which one decoding step verifies.

A draft begins with the tokens that the reply's grammar forces. With prompt lookup, it goes on with the tokens that
followed the same n-gram earlier in prompt and reply (as transformers' `prompt_lookup_num_tokens` and vLLM's "ngram"
method). A drafted token is kept only if the sampler gives it from the model's own logits, so drafts never change a
reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm.engine.sampling import TokenGuide

MOST_FORCED = 32  # a longer forced text takes several steps: each row of a step has the logits of the whole vocabulary
_NGRAMS = (4, 3, 2)  # lengths, tried in this order
_LONGEST_PAUSE = 64
_PAYING_PART = 4  # a draft pays if at least one in so many of its tokens is kept


@dataclass
class DraftCounts:
    """Drafted tokens of all replies so far.

    `forced`: by a grammar; `drafted`: found by prompt lookup; `accepted`: those of `drafted` that became reply.
    """

    forced: int = 0
    drafted: int = 0
    accepted: int = 0


class Drafter:
    """Drafts the next tokens of one reply.

    Args:
        prompt_ids: token ids of the prompt.
        guide: its forced tokens begin each draft.
        num_tokens: maximum tokens that one prompt lookup drafts; None for no lookups.
        counts: where the drafted tokens are counted.
    """

    def __init__(
        self, prompt_ids: Sequence[int], guide: TokenGuide | None, num_tokens: int | None, counts: DraftCounts
    ) -> None:
        self._guide, self._counts = guide, counts
        self._lookup = None if num_tokens is None else PromptLookup(prompt_ids, num_tokens)
        self._num_forced = self._num_drafted = 0

    def draft(self, reply_ids: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `reply_ids`, which begin with those of the call before."""
        forced = [] if self._guide is None else self._guide.forced_tokens()[: min(most, MOST_FORCED)]
        looked_up: list[int] = []
        if self._lookup is not None:
            looked_up = self._lookup.draft(reply_ids, forced)[: most - len(forced)]
        self._num_forced, self._num_drafted = len(forced), len(looked_up)
        return [*forced, *looked_up]

    def verified(self, num_accepted: int) -> None:
        """Record that the first `num_accepted` tokens of the newest draft were kept."""
        accepted = max(0, num_accepted - self._num_forced)
        self._counts.forced += min(num_accepted, self._num_forced)
        self._counts.drafted += self._num_drafted
        self._counts.accepted += accepted
        if self._lookup is not None and self._num_drafted and num_accepted >= self._num_forced:
            self._lookup.verified(self._num_drafted, accepted)


class PromptLookup:
    """Drafts the tokens that followed the newest n-gram where it occurred before, in prompt or reply.

    Drafts become longer while they are kept and shorter when they are not. After drafts that do not pay, some steps
    draft nothing: one at first, then more and more.

    Args:
        prompt_ids: token ids of the prompt.
        num_tokens: maximum tokens of a draft.
    """

    def __init__(self, prompt_ids: Sequence[int], num_tokens: int) -> None:
        self._prompt_ids, self._most = prompt_ids, num_tokens
        self._token_ids: list[int] = []  # prompt and reply, as far as `_next` knows them
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after its latest occurrence
        self._length = (num_tokens + 1) // 2
        self._pause = self._num_misses = 0

    def draft(self, reply_ids: Sequence[int], forced: Sequence[int] = ()) -> list[int]:
        """Tokens that may follow `reply_ids` and the `forced` tokens after them; none while drafts do not pay."""
        if self._pause:
            self._pause -= 1
            return []
        self._read(self._prompt_ids[len(self._token_ids) :])
        self._read(reply_ids[len(self._token_ids) - len(self._prompt_ids) :])
        newest = [*self._token_ids[-_NGRAMS[0] :], *forced]
        for size in _NGRAMS:
            start = self._next.get(tuple(newest[-size:])) if len(newest) >= size else None
            if start is not None:
                return self._copied(start, forced)
        return []

    def verified(self, num_drafted: int, num_accepted: int) -> None:
        """Adapt to a draft of `num_drafted` tokens of which the first `num_accepted` were kept."""
        is_whole = num_accepted == num_drafted
        self._length = min(self._most, 2 * self._length if is_whole else num_accepted + 1)
        if _PAYING_PART * num_accepted >= num_drafted:
            self._num_misses = 0
            return
        self._num_misses += 1
        self._pause = min(2**self._num_misses - 1, _LONGEST_PAUSE)

    def _read(self, token_ids: Sequence[int]) -> None:
        """Append tokens; each becomes what follows the n-grams before it."""
        for token_id in token_ids:
            index = len(self._token_ids)
            for size in _NGRAMS:
                if size <= index:
                    self._next[tuple(self._token_ids[index - size :])] = index
            self._token_ids.append(token_id)

    def _copied(self, start: int, forced: Sequence[int]) -> list[int]:
        """Copy tokens from index `start` on; beyond the newest token, the copied ones are copied again."""
        known = [*self._token_ids[start : start + self._length], *forced]
        while len(known) < self._length:
            known.append(known[len(known) - (len(self._token_ids) + len(forced) - start)])
        return known[: self._length]


def drafter(
    prompt_ids: Sequence[int], guide: TokenGuide | None, num_tokens: int | None, counts: DraftCounts
) -> Drafter | None:
    """The drafter of a reply, with the arguments of :class:`Drafter`; None if there is nothing to draft from."""
    if guide is None and num_tokens is None:
        return None
    return Drafter(prompt_ids, guide, num_tokens, counts)
