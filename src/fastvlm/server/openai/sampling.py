"""Sampling parameters of a request -> those of the engine, whose names, defaults and limits differ."""

from __future__ import annotations

from dataclasses import replace

from fastvlm.engine.types import TEMPERATURES, SamplingParams
from fastvlm.errors import ContextLengthError
from fastvlm.server.http.errors import invalid
from fastvlm.server.openai.schemas import ChatRequest, CompletionRequest, SamplingRequest
from fastvlm.server.settings import ServeSettings


def sampling_params(request: ChatRequest | CompletionRequest, max_new_tokens: int) -> SamplingParams:
    """The sampling parameters of the request's first choice.

    The default temperature is 0, as in the checkpoints' generation configs; `top_p` without `temperature` implies 1,
    OpenAI's default. A temperature below the engine's smallest and `top_p` 0 mean greedy decoding. -1 means "all" for
    `top_k` and "none" for `seed`, as in vLLM.
    """
    temperature = request.temperature
    if temperature is None:
        temperature = 0.0 if request.top_p is None else 1.0
    is_greedy = temperature < TEMPERATURES[0] or request.top_p == 0
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if is_greedy else temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=request.top_p or 1.0,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        seed=None if request.seed == -1 else request.seed,
        stop=request.stop or (),
        logprobs=_num_logprobs(request),
        keep_whitespace=isinstance(request, CompletionRequest),
    )


def _num_logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """Number of top log probabilities per token; None for no log probabilities."""
    if isinstance(request, CompletionRequest):
        return request.logprobs
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """The sampling parameters of choice `index`, with a seed of its own: with one seed all choices would be equal."""
    return params if params.seed is None else replace(params, seed=(params.seed + index) % 2**63)


def max_new_tokens(request: SamplingRequest, prompt_tokens: int, context: int, settings: ServeSettings) -> int:
    """Tokens that the reply may have: the request's limit, the server's, or what the context leaves.

    Raises:
        ContextLengthError: the prompt leaves no room for a reply, or is longer than `max_prompt_tokens`.
    """
    longest = min(context - 1, settings.max_prompt_tokens or context)
    if prompt_tokens > longest:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens; the limit is {longest}. Shorten it, or send fewer images."
        )
    newer = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    wanted = request.max_tokens if newer is None else newer
    most = min(settings.max_output_tokens, context - prompt_tokens)
    return most if wanted is None else min(wanted, most)
