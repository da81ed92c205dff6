"""Input and output records of the engine: frozen dataclasses without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastvlm.errors import UsageError

# "stop": an end token or a stop string; "length": max_new_tokens reached; "cancelled"; "error": see TokenEvent.error.
FinishReason = Literal["stop", "length", "cancelled", "error"]

TEMPERATURES = (0.01, 100.0)  # below, scaled logits overflow; above, all tokens are equally likely
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20
SEEDS = 2**63
MOST_LOOKED_UP = 64  # tokens of one prompt lookup


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings and end conditions of one reply.

    Filters run in transformers' order: repetition penalty, temperature, top-k, top-p, min-p. At temperature 0 the
    likeliest token is taken, and `top_k`, `top_p`, `min_p` and `seed` have no effect.

    Args:
        max_new_tokens: maximum length of the reply, including the end token.
        temperature: 0 for greedy decoding, else 0.01 to 100.
        top_k: draw among this many likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens whose probabilities sum to this, above 0 and at most 1.
        min_p: draw among tokens at least this probable relative to the likeliest, 0 to 1.
        repetition_penalty: above 1 makes tokens of prompt and reply less likely, below 1 more; above 0.
        seed: makes the draws repeatable, independent of concurrent requests; None for a random one.
        stop: texts that end the reply; they are not part of it.
        stop_token_ids: tokens that end the reply, in addition to the model's end tokens.
        ignore_eos: go on after the model's end tokens, up to `max_new_tokens`; for measurements.
        logprobs: return the log probability of each token and of this many likeliest alternatives; None for none.
        keep_whitespace: do not strip the text, for a reply that continues a text.

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
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
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
        ids_ok = len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS and all(_is_count(i, 0) for i in self.stop_token_ids)
        _check("stop_token_ids", self.stop_token_ids, ids_ok, f"at most {MAX_STOP_TOKEN_IDS} token ids")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def is_greedy(self) -> bool:
        """True if nothing is random."""
        return self.temperature == 0


def _is_count(value: object, low: int, high: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise UsageError(f"{name} is {value!r}; expected {expected}.")


def check_lookup(num_tokens: int | None, name: str = "prompt_lookup_num_tokens") -> None:
    """Raise UsageError for a maximum of drafted tokens out of range; `name` is the setting."""
    is_right = num_tokens is None or _is_count(num_tokens, 1, MOST_LOOKED_UP)
    _check(name, num_tokens, is_right, f"1 to {MOST_LOOKED_UP} tokens, or None for no lookup")


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """`stop` as a tuple; a single string becomes a tuple of one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    are_right = all(isinstance(text, str) and text for text in strings)
    _check("stop", stop, are_right, "non-empty strings")
    _check("stop", stop, len(strings) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings")
    return strings


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log probabilities at one token's position, from the model's distribution before any filter."""

    token: float
    top: tuple[tuple[int, float], ...]  # (token id, log probability), the likeliest first


@dataclass(frozen=True)
class Usage:
    """Token counts of one reply.

    `prompt_tokens` includes `image_tokens`; `completion_tokens` includes the end token. `cached_prompt_tokens` were
    reused from an earlier request with the same prefix.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Durations of one reply in milliseconds.

    `preprocess`: messages and image bytes to tensors; `wait`: until a slot was free; `encode`: encoder and projector;
    `prefill`: the prompt through the decoder, up to the first token; `ttft`: from the start of preprocessing to the
    first visible text (None if there was none); `total`: to the last token.
    """

    preprocess: float
    wait: float
    encode: float
    prefill: float
    ttft: float | None
    total: float


@dataclass(frozen=True)
class Completion:
    """A whole reply. `token_ids` includes the end token; `text` has neither it nor the `stop_string` that ended it."""

    request_id: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tokens_per_second: float | None  # of decoding, after the first token; None below two tokens
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one for each token, if requested
    stop_string: str | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One token of one request; the last event has a `finish_reason` and the `completion`.

    `text` is the text that this token adds; it is empty while a character or a possible stop string is incomplete. A
    cancelled or failed request ends with an event without a token; `error` is the exception of a failed one.
    """

    request_id: int
    token_id: int | None
    text: str = ""
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    completion: Completion | None = None
    error: Exception | None = None
