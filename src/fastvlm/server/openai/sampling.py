"""A request's settings -> the engine's: names, defaults and limits differ."""

from __future__ import annotations

from dataclasses import replace

from fastvlm.engine.types import TEMPERATURES, SamplingParams
from fastvlm.errors import ContextLengthError
from fastvlm.server.http.errors import invalid
from fastvlm.server.openai.schemas import ChatRequest, CompletionRequest, SamplingRequest
from fastvlm.server.settings import ServeSettings

__all__ = ["choice_params", "read_params", "reply_limit"]


def read_params(asked: ChatRequest | CompletionRequest, max_new_tokens: int) -> SamplingParams:
    """The settings of the request's first choice.

    Temperature 0 is the default, as the checkpoints' own generation configs have it; who gives `top_p` alone wants
    draws, at OpenAI's default of 1. A temperature below the engine's smallest is 0, and so is `top_p` 0: both take the
    likeliest token. -1 stands for "all" in `top_k` and for "none" in `seed`, as in vLLM.
    """
    temperature = asked.temperature
    if temperature is None:
        temperature = 0.0 if asked.top_p is None else 1.0
    is_greedy = temperature < TEMPERATURES[0] or asked.top_p == 0
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if is_greedy else temperature,
        top_k=max(asked.top_k or 0, 0),
        top_p=asked.top_p or 1.0,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        seed=None if asked.seed == -1 else asked.seed,
        stop=asked.stop or (),
        logprobs=_num_logprobs(asked),
        keep_whitespace=isinstance(asked, CompletionRequest),
    )


def _num_logprobs(asked: ChatRequest | CompletionRequest) -> int | None:
    """How many likeliest tokens beside each; None for no log probabilities."""
    if isinstance(asked, CompletionRequest):
        return asked.logprobs
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (asked.top_logprobs or 0) if asked.logprobs else None


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """The settings of choice `index`: a seed of its own, or all choices would be the same."""
    return params if params.seed is None else replace(params, seed=(params.seed + index) % 2**63)


def reply_limit(asked: SamplingRequest, prompt_tokens: int, context: int, settings: ServeSettings) -> int:
    """Tokens that the reply may have: what is asked for, at most the server's limit and what the context leaves.

    Raises:
        ContextLengthError: the prompt leaves no room for a reply, or is longer than the server takes.
    """
    longest = min(context - 1, settings.max_prompt_tokens or context)
    if prompt_tokens > longest:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens; the limit is {longest}. Shorten it, or send fewer images."
        )
    newer = asked.max_completion_tokens if isinstance(asked, ChatRequest) else None
    wanted = asked.max_tokens if newer is None else newer
    most = min(settings.max_output_tokens, context - prompt_tokens)
    return most if wanted is None else min(wanted, most)
