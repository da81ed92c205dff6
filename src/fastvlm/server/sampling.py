"""The sampling parameters of requests, in any client's API, as the engine's."""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.engine.types import TEMPERATURES, SamplingParams
from fastvlm.server.settings import ServeSettings


def sampling_params(
    settings: ServeSettings,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    ignore_eos: bool | None = None,
    logprobs: int | None = None,
    keep_whitespace: bool = False,
) -> SamplingParams:
    """The engine's parameters; None is the default of a parameter.

    The default temperature is 0, as in the checkpoints' generation configs; `top_p` without `temperature` implies 1,
    OpenAI's default. A temperature below the engine's smallest and `top_p` 0 mean greedy decoding. -1 means "all" for
    `top_k`, "none" for `seed`, and "as many as the server allows" for `max_tokens`, as in vLLM and Ollama.
    """
    if temperature is None:
        temperature = 0.0 if top_p is None else 1.0
    is_greedy = temperature < TEMPERATURES[0] or top_p == 0
    most = settings.max_output_tokens
    return SamplingParams(
        max_new_tokens=most if max_tokens is None or max_tokens < 1 else min(max_tokens, most),
        temperature=0.0 if is_greedy else temperature,
        top_k=max(top_k or 0, 0),
        top_p=top_p or 1.0,
        min_p=min_p or 0.0,
        repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
        seed=None if seed is None or seed < 0 else seed,
        stop=stop or (),
        stop_token_ids=stop_token_ids or (),
        ignore_eos=bool(ignore_eos),
        logprobs=logprobs,
        keep_whitespace=keep_whitespace,
    )
