"""A request's settings -> the engine's: names, defaults and limits differ."""

from __future__ import annotations

from dataclasses import replace

from fastvlm.engine.types import TEMPERATURES, SamplingParams
from fastvlm.errors import ContextLengthError
from fastvlm.server.api_errors import invalid
from fastvlm.server.schemas import ChatRequest, CompletionRequest, SamplingRequest
from fastvlm.server.settings import ServeSettings

__all__ = ["choice_params", "read_params", "reply_limit"]


def read_params(asked: ChatRequest | CompletionRequest, max_new_tokens: int) -> SamplingParams:
    """The settings of the request's first choice.

    Temperature 0 is the default, as the checkpoints' own generation configs have it; who gives `top_p` alone wants
    draws, at OpenAI's default of 1. A temperature below the engine's smallest is 0.
    """
    temperature = asked.temperature
    if temperature is None:
        temperature = 0.0 if asked.top_p is None else 1.0
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature if temperature >= TEMPERATURES[0] else 0.0,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        seed=asked.seed,
        stop=asked.stop or (),
        logprobs=_num_logprobs(asked),
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
    """Tokens that the reply may have.

    Raises:
        ContextLengthError: the prompt leaves no room for it.
        ApiError: more than the server gives, or a prompt longer than it takes.
    """
    longest_prompt = settings.max_prompt_tokens
    if longest_prompt is not None and prompt_tokens > longest_prompt:
        raise ContextLengthError(f"The prompt has {prompt_tokens} tokens; the limit is {longest_prompt}. Shorten it.")
    newer = asked.max_completion_tokens if isinstance(asked, ChatRequest) else None
    wanted = asked.max_tokens if newer is None else newer
    if wanted is not None and wanted > settings.max_output_tokens:
        name = "max_tokens" if newer is None else "max_completion_tokens"
        raise invalid(f"{name} is {wanted}; the limit is {settings.max_output_tokens}.", param=name)
    room = context - prompt_tokens
    if room < (wanted or 1):
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens and {wanted or 'at least 1'} are asked for; {context} fit. "
            "Shorten the prompt, or lower max_tokens."
        )
    return wanted if wanted is not None else min(settings.max_output_tokens, room)
