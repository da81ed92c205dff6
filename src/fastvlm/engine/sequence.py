"""State of one running request: its tokens and text, its end condition and its timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from fastvlm.engine.detokenizer import Detokenizer
from fastvlm.engine.drafting import Drafter
from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.sampling import SampledToken, Sampler
from fastvlm.engine.types import Completion, FinishReason, SamplingParams, Timings, TokenEvent, TokenLogprobs, Usage


class SequenceState:
    """The state of one request in the engine.

    Args:
        request_id: the id that its events carry.
        prompt, params: as submitted.
        sampler: samples its tokens.
        decode: token ids -> text without special tokens.
        stop_ids: token ids that end the reply.
        drafter: drafts its tokens; None for one token a step.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        request_id: int,
        prompt: PromptInputs,
        params: SamplingParams,
        sampler: Sampler,
        *,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Collection[int],
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.request_id, self.prompt, self.params, self.sampler = request_id, prompt, params, sampler
        self.slot = -1  # none yet
        self.num_cached = 0
        self.drafter = drafter
        self._text = Detokenizer(decode, params.stop, keeps_space=params.keep_whitespace)
        self._stop_ids, self._clock = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}, clock
        self._logprobs: list[TokenLogprobs] = []
        self._submitted_s = self._admitted_s = self._encoding_s = self._encoded_s = clock()
        self._token_times_s: list[float] = []
        self._first_text_s: float | None = None

    @property
    def last_token(self) -> int:
        """The newest token, which has no entry in the KV cache yet."""
        return self._text.token_ids[-1]

    def inputs(self) -> list[int]:
        """The newest token and the drafted tokens after it, to be decoded in one step."""
        most = self.params.max_new_tokens - len(self._text.token_ids) - 1  # the step gives one token more
        if self.drafter is None or most < 1:
            return [self.last_token]
        return [self.last_token, *self.drafter.draft(self._text.token_ids, most)]

    @property
    def position(self) -> int:
        """Position of the newest token in the slot."""
        return len(self.prompt.token_ids) + len(self._text.token_ids) - 1

    def admitted(self, slot: int, num_cached: int) -> None:
        """Record the slot and the number of prompt tokens that are cached there."""
        self.slot, self.num_cached = slot, num_cached
        self._admitted_s = self._encoding_s = self._encoded_s = self._clock()

    def encoding(self) -> None:
        """Record the start of image encoding."""
        self._encoding_s = self._encoded_s = self._clock()

    def encoded(self) -> None:
        """Record the end of image encoding."""
        self._encoded_s = self._clock()

    def append(self, sampled: SampledToken) -> TokenEvent:
        """Append a token; its event has the new text, and the finish reason if the reply ends."""
        text = self._text.put(sampled.token_id)
        self._token_times_s.append(self._clock())
        if sampled.logprobs is not None:
            self._logprobs.append(sampled.logprobs)
        reason = self._finish_reason()
        if reason is not None:
            text += self._text.end()
            reason = "stop" if self._text.stop_string is not None else reason
        if text and self._first_text_s is None:
            self._first_text_s = self._token_times_s[-1]
        return TokenEvent(
            request_id=self.request_id,
            token_id=sampled.token_id,
            text=text,
            logprobs=sampled.logprobs,
            finish_reason=reason,
            completion=None if reason is None else self.completion(reason),
        )

    def _finish_reason(self) -> FinishReason | None:
        if self._text.stop_string is not None or self.last_token in self._stop_ids:
            return "stop"
        return "length" if len(self._text.token_ids) >= self.params.max_new_tokens else None

    def aborted(self, error: Exception | None = None) -> TokenEvent:
        """The last event of a request that was cancelled or failed, with the text held back so far."""
        reason: FinishReason = "cancelled" if error is None else "error"
        text = self._text.end()
        return TokenEvent(
            self.request_id, None, text, finish_reason=reason, completion=self.completion(reason), error=error
        )

    def completion(self, reason: FinishReason) -> Completion:
        """The reply so far."""
        times_s, count = self._token_times_s, len(self._token_times_s)
        decoding_s = times_s[-1] - times_s[0] if times_s else 0.0
        return Completion(
            request_id=self.request_id,
            text=self._text.text,
            token_ids=tuple(self._text.token_ids),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt.token_ids),
                image_tokens=len(self.prompt.placeholder_positions),
                completion_tokens=count,
                cached_prompt_tokens=self.num_cached,
            ),
            timings=self._timings(),
            tokens_per_second=(count - 1) / decoding_s if count > 1 and decoding_s > 0 else None,
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
            stop_string=self._text.stop_string,
        )

    def _timings(self) -> Timings:
        before_ms, start_s, times_s = self.prompt.preprocess_ms, self._submitted_s, self._token_times_s
        end_s = times_s[-1] if times_s else self._clock()
        first_text_s = self._first_text_s
        return Timings(
            preprocess=before_ms,
            wait=1000 * (self._admitted_s - start_s),
            encode=1000 * (self._encoded_s - self._encoding_s),
            prefill=1000 * (times_s[0] - self._encoded_s) if times_s else 0.0,
            ttft=None if first_text_s is None else before_ms + 1000 * (first_text_s - start_s),
            total=before_ms + 1000 * (end_s - start_s),
        )
