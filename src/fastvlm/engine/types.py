"""What goes into the engine and what comes out: plain frozen records, without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastvlm.errors import UsageError

__all__ = [
    "Completion",
    "FinishReason",
    "SamplingParams",
    "Timings",
    "TokenEvent",
    "TokenLogprobs",
    "Usage",
]

# "stop": an end token or a stop string; "length": max_new_tokens are reached; "cancelled"; "error": see the event.
FinishReason = Literal["stop", "length", "cancelled", "error"]

TEMPERATURES = (0.01, 100.0)  # below, logits divided by it overflow; above, all tokens are equally likely
MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
SEEDS = 2**63


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one reply are picked, and when it ends.

    Filters work in transformers' order: repetition penalty, temperature, top-k, top-p, min-p. At temperature 0 the
    likeliest token is taken, and `top_k`, `top_p`, `min_p` and `seed` have no effect.

    Args:
        max_new_tokens: tokens after which the reply is cut; the end token counts.
        temperature: 0 for the likeliest token, else 0.01 to 100.
        top_k: draw among this many likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that together hold this probability, above 0 and at most 1.
        min_p: draw among tokens at least this probable relative to the likeliest, 0 to 1.
        repetition_penalty: above 1 makes tokens of prompt and reply less likely, below 1 more; above 0.
        seed: makes the draws repeatable, whatever else runs beside; None for a new one each time.
        stop: texts that end the reply; they are not part of it.
        logprobs: log probabilities with each token: of this many likeliest ones beside its own; None for none.
        keep_whitespace: leave white space at both ends of the text, which otherwise is stripped: for a reply that
            continues a text.

    Raises:
        UsageError: a value outside its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    keep_whitespace: bool = False

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        temperature_ok = self.temperature == 0 or low <= self.temperature <= high  # False for NaN, as all below
        _check("temperature", self.temperature, temperature_ok, f"0, or {low} to {high:g}")
        _check("max_new_tokens", self.max_new_tokens, _is_count(self.max_new_tokens, 1), "a whole number from 1")
        _check("top_k", self.top_k, _is_count(self.top_k, 0), "a whole number, 0 for all tokens")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        penalty_ok = 0 < self.repetition_penalty < float("inf")
        _check("repetition_penalty", self.repetition_penalty, penalty_ok, "a number above 0; 1 changes nothing")
        _check("seed", self.seed, self.seed is None or _is_count(self.seed, 0, SEEDS - 1), "0 to 2^63 - 1")
        logprobs_ok = self.logprobs is None or _is_count(self.logprobs, 0, MAX_LOGPROBS)
        _check("logprobs", self.logprobs, logprobs_ok, f"0 to {MAX_LOGPROBS}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def is_greedy(self) -> bool:
        """True if nothing is drawn."""
        return self.temperature == 0


def _is_count(value: object, low: int, high: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise UsageError(f"{name} is {value!r}; expected {expected}.")


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """`stop` as a tuple; one string is a list of one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    are_right = all(isinstance(text, str) and text for text in strings)
    _check("stop", stop, are_right, "non-empty strings")
    _check("stop", stop, len(strings) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings")
    return strings


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities (natural, of the model's own distribution, before any filter) at one token's place."""

    token: float
    top: tuple[tuple[int, float], ...]  # (token id, log probability), the likeliest first


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply.

    `prompt_tokens` has the `image_tokens` in it, `completion_tokens` the end token. `cached_prompt_tokens` are those of
    the prompt that were not computed again, because an earlier request began with them.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one reply.

    `preprocess`: messages and image bytes to tensors; `wait`: until a slot was free; `encode`: encoder and projector;
    `prefill`: the prompt through the decoder, up to the first token; `ttft`: all of these and what lies between, to the
    first text that can be shown (None if there was none); `total`: to the last token.
    """

    preprocess: float
    wait: float
    encode: float
    prefill: float
    ttft: float | None
    total: float


@dataclass(frozen=True)
class Completion:
    """A whole reply. `token_ids` has the end token in it, `text` neither it nor a stop string."""

    request_id: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tokens_per_second: float | None  # of decoding, after the first token; None below two tokens
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one for each token, if asked for


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request; the last event has a `finish_reason` and the `completion`.

    `text` is what this token adds to the reply: empty while a character or a stop string may not be over. A cancelled
    or failed request ends with an event without token; `error` is what failed.
    """

    request_id: int
    token_id: int | None
    text: str = ""
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    error: Exception | None = None
