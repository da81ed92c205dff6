"""Parameters that chats and completions share, and how they become the engine's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastvlm.engine.types import MAX_LOGPROBS, MAX_STOP_STRINGS, TEMPERATURES, SamplingParams
from fastvlm.server.http.errors import invalid
from fastvlm.server.settings import ServeSettings

_MAX_STOP_CHARACTERS = 256  # a step compares every ending of the text so far with every stop string

Label = Annotated[str, Field(max_length=512)]  # a text without effect
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
_StopString = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]


class Strict(BaseModel):
    """Part of a request: exact types, known names only.

    Unknown parameters and unsupported values are refused: a parameter that is silently ignored would give a wrong
    answer.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """Options of a streamed reply."""

    include_usage: bool = Field(False, description="The last event has the usage of all choices.")
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class SamplingRequest(Strict):
    """Parameters that chats and completions share. `top_k`, `min_p` and `repetition_penalty` are vLLM's additions."""

    model: str = Field(description="A name listed by /v1/models.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens after which the reply is cut; the server's limit and the context may cut it earlier.",
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0, the default, is greedy. top_p without temperature implies 1."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 is greedy.")
    n: int | None = Field(None, ge=1, le=128)
    stop: _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="Makes sampling repeatable; choice i uses seed + i. -1 is none."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 and -1 sample from all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    presence_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="Not supported.")
    user: Label | None = Field(None, description="Has no effect.")


def sampling_params(
    request: SamplingRequest,
    settings: ServeSettings,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    keep_whitespace: bool = False,
) -> SamplingParams:
    """The sampling parameters of the request's first choice.

    The default temperature is 0, as in the checkpoints' generation configs; `top_p` without `temperature` implies 1,
    OpenAI's default. A temperature below the engine's smallest and `top_p` 0 mean greedy decoding. -1 means "all" for
    `top_k` and "none" for `seed`, as in vLLM.

    Raises:
        ApiError: `stream_options` without `stream`.
    """
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream to be true.", param="stream_options")
    temperature = request.temperature
    if temperature is None:
        temperature = 0.0 if request.top_p is None else 1.0
    is_greedy = temperature < TEMPERATURES[0] or request.top_p == 0
    return SamplingParams(
        max_new_tokens=min(max_tokens or settings.max_output_tokens, settings.max_output_tokens),
        temperature=0.0 if is_greedy else temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=request.top_p or 1.0,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        seed=None if request.seed == -1 else request.seed,
        stop=request.stop or (),
        logprobs=logprobs,
        keep_whitespace=keep_whitespace,
    )
