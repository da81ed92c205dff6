"""Parameters that chats and completions share, and how they become the engine's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fastvlm.engine.types import MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, SamplingParams
from fastvlm.server.http.errors import invalid
from fastvlm.server.request_parts import Label, StopString, StopStrings, Strict
from fastvlm.server.sampling import sampling_params
from fastvlm.server.settings import ServeSettings

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(Strict):
    """Options of a streamed reply."""

    include_usage: bool = Field(False, description="The last event has the usage of all choices.")
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class SamplingRequest(Strict):
    """Parameters that chats and completions share. From `top_k` to `ignore_eos` they are vLLM's additions."""

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
    stop: StopString | StopStrings | None = None
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="Makes sampling repeatable; choice i uses seed + i. -1 is none."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 and -1 sample from all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)] | None = None
    ignore_eos: bool | None = Field(None, description="Go on after the model's end, up to max_tokens.")
    frequency_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    presence_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="Not supported.")
    user: Label | None = Field(None, description="Has no effect.")


def openai_params(request: SamplingRequest, settings: ServeSettings, **more: Any) -> SamplingParams:
    """The sampling parameters of the request's first choice; `more` are others of :func:`sampling_params`.

    Raises:
        ApiError: `stream_options` without `stream`.
    """
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream to be true.", param="stream_options")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "stop_token_ids")
    given = {name: getattr(request, name) for name in (*names, "ignore_eos", "max_tokens")}
    return sampling_params(settings, **{**given, **more})
