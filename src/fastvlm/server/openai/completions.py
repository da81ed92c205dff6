"""/v1/completions (openai-python 3.54, `types/completion*.py`): text without a chat template, and without images."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fastvlm.processing.prompt import IMAGE_TOKEN
from fastvlm.server.context import ServerContext
from fastvlm.server.generation import GenerationRequest
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import invalid
from fastvlm.server.openai.formatter import OpenAiFormatter, ReplyObject
from fastvlm.server.openai.logprobs import LogprobFormatter, TokenLogprob
from fastvlm.server.openai.sampling import SamplingRequest, TopLogprobs, openai_params


class CompletionRequest(SamplingRequest):
    """POST /v1/completions: text without a chat template, and without images."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16, fail_fast=True)]
    logprobs: TopLogprobs | None = None
    echo: Literal[False] | None = Field(None, description="Not supported; false only.")
    suffix: None = Field(None, description="Not supported.")
    best_of: int | None = Field(None, ge=1, description="Not supported; only the value of n is allowed.")


class TextLogprobs(BaseModel):
    """Lists of equal length, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: TextLogprobs | None = None


class TextCompletion(ReplyObject):
    """The reply of /v1/completions."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


def read_completion(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of a completion request. Texts may contain a chat's special tokens, except for images.

    Raises:
        ApiError: the body is not a :class:`CompletionRequest`, or a text is too long.
    """
    request = parse(body, CompletionRequest, context.settings)
    num_choices = request.n or 1
    if request.best_of not in (None, num_choices):
        raise invalid(f"best_of is {request.best_of}; expected the value of n, {num_choices}.", param="best_of")
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    for text in texts:
        context.text_limits.check_length([text], "prompt")
        if IMAGE_TOKEN in text:
            raise invalid(f"The prompt contains {IMAGE_TOKEN!r}; send images to /v1/chat/completions.", param="prompt")
    return GenerationRequest(
        model=request.model,
        prompts=texts,
        params=openai_params(request, context.settings, logprobs=request.logprobs, keep_whitespace=True),
        formatter=CompletionFormatter(request, context.logprobs),
        num_choices=num_choices,
        is_stream=bool(request.stream),
    )


class CompletionFormatter(OpenAiFormatter):
    """Formats the replies to a completion request."""

    id_prefix, reply_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, request: SamplingRequest, logprobs: LogprobFormatter) -> None:
        super().__init__(request, logprobs)
        self._offsets = Counter[int]()  # characters of each choice so far

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _delta = _content

    def _logprobs(self, index: int, entries: list[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for entry in entries:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(entry.token)
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{top.token: top.logprob for top in entry.top_logprobs} for entry in entries],
            "text_offset": offsets,
        }
