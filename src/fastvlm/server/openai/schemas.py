"""Requests and replies as OpenAI's API has them (openai-python 3.54, `types/chat`, `types/completion*.py`).

A request's unknown names are refused, and what the engine cannot do is refused by value: a setting that is silently
ignored would be a wrong answer. `top_k`, `min_p` and `repetition_penalty` are additions that vLLM's users know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

__all__ = [
    "ChatCompletion",
    "ChatRequest",
    "Completion",
    "CompletionRequest",
    "ContentPart",
    "ErrorReply",
    "ImagePart",
    "Message",
    "Model",
    "ModelList",
    "ResponseFormat",
    "SamplingRequest",
    "State",
    "StreamOptions",
    "TextPart",
]

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256  # a step compares every ending of the text so far with every stop string
MAX_TOP_LOGPROBS = 20
MAX_PARTS = 1000  # of one message
_MAX_LABEL_CHARACTERS = 512  # of texts that have no effect

Label = Annotated[str, Field(max_length=_MAX_LABEL_CHARACTERS)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class _Asked(BaseModel):
    """Part of a request: exact kinds, known names only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Asked):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Asked):
    """Where an image is: in the request itself, or at an address whose host the server allows."""

    url: str = Field(description="data:image/png;base64,... or, where the server allows its host, https://...")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Has no effect: FastVLM has one resolution."
    )


class ImagePart(_Asked):
    """An image in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        """Where the image is."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
ContentParts = Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class Message(_Asked):
    """One turn. What a reply has beside its content may come back with it, as long as it is null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | ContentParts | None = Field(None, description="Only an assistant's message may have none.")
    name: Label | None = Field(None, description="Has no effect.")
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(_Asked):
    """Options of a streamed reply."""

    include_usage: bool = Field(False, description="End with an event that has the usage of all choices.")
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class JsonSchemaFormat(_Asked):
    """A JSON schema and its name."""

    name: str = Field("reply", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Every schema is enforced, with or without it.")


class PlainFormat(_Asked):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Asked):
    """JSON of a schema, enforced token by token."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class SamplingRequest(_Asked):
    """What chats and completions have in common."""

    model: str = Field(description="A name that /v1/models lists.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens after which the reply is cut; the server and the context may cut it earlier.",
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0, the default, takes the likeliest token. With top_p alone it is 1."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="0 takes the likeliest token.")
    n: int | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="Makes draws repeatable; choice i draws with seed + i. -1 is none."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 and -1 draw among all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    presence_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="Not supported.")
    user: Label | None = Field(None, description="Has no effect.")


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not supported.")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Has no effect.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    store: bool | None = Field(None, description="Has no effect: nothing is stored.")
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = Field(None, description="Has no effect.")
    service_tier: Label | None = Field(None, description="Has no effect.")
    safety_identifier: Label | None = Field(None, description="Has no effect.")
    prompt_cache_key: Label | None = Field(
        None, description="Has no effect: beginnings in common are found by content."
    )


class CompletionRequest(SamplingRequest):
    """POST /v1/completions: text as it is, without a chat's marks, and without images."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16, fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: int | None = Field(None, ge=1, description="Not supported; the same number as n only.")


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int
    image_tokens: int


class UsageReply(BaseModel):
    """Tokens of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that came, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Of every token of a reply but its end."""

    content: list[TokenLogprob]
    refusal: None = None


class ReplyMessage(BaseModel):
    """The reply's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One reply."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(BaseModel):
    """The reply of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: StrictInt
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class TextLogprobs(BaseModel):
    """Lists of one length, an entry for each token."""

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


class Completion(BaseModel):
    """The reply of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: StrictInt
    model: str
    choices: list[TextChoice]
    usage: UsageReply


class Model(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: StrictInt
    owned_by: Literal["fastvlm"] = "fastvlm"


class ModelList(BaseModel):
    """The reply of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class State(BaseModel):
    """The reply of /health and /ready."""

    status: Literal["starting", "warming up", "ready", "stopping", "failed"]
    is_ready: StrictBool


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every reply that is an error."""

    error: ErrorDetails
