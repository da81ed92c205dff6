"""Schemas of requests and responses of OpenAI's API (openai-python 3.54, `types/chat`, `types/completion*.py`).

Unknown parameters and unsupported values are refused: a parameter that is silently ignored would give a wrong answer.
`top_k`, `min_p` and `repetition_penalty` are vLLM's additions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256  # a step compares every ending of the text so far with every stop string
MAX_TOP_LOGPROBS = 20
MAX_PARTS = 1000  # in one message
_MAX_LABEL_CHARACTERS = 512  # in texts without effect

Label = Annotated[str, Field(max_length=_MAX_LABEL_CHARACTERS)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class _Strict(BaseModel):
    """Part of a request: exact types, known names only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """An image as a data URI, or the URL of an image on an allowed host."""

    url: str = Field(description="data:image/png;base64,... or, if the server allows its host, https://...")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Has no effect: FastVLM has one resolution."
    )


class ImagePart(_Strict):
    """An image in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str

    @property
    def url(self) -> str:
        """The data URI or URL."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
ContentParts = Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class Message(_Strict):
    """One turn. The other fields of a reply may be sent back with it if they are null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | ContentParts | None = Field(None, description="May be null only for an assistant's message.")
    name: Label | None = Field(None, description="Has no effect.")
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(_Strict):
    """Options of a streamed reply."""

    include_usage: bool = Field(False, description="The last event has the usage of all choices.")
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class JsonSchemaFormat(_Strict):
    """A JSON schema and its name."""

    name: str = Field("reply", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Every schema is enforced, with or without this.")


class PlainFormat(_Strict):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Strict):
    """JSON of a schema, enforced token by token."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class SamplingRequest(_Strict):
    """Parameters that chats and completions share."""

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
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None = None
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
    prompt_cache_key: Label | None = Field(None, description="Has no effect: common prefixes are found by content.")


class CompletionRequest(SamplingRequest):
    """POST /v1/completions: text without a chat template, and without images."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16, fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: int | None = Field(None, ge=1, description="Not supported; only the value of n is allowed.")


class PromptDetails(BaseModel):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    image_tokens: int


class UsageReply(BaseModel):
    """Token counts of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A candidate token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The chosen token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Log probabilities of every token of a reply except its end."""

    content: list[TokenLogprob]
    refusal: None = None


class ReplyMessage(BaseModel):
    """The reply's message."""

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


class Completion(BaseModel):
    """The reply of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: StrictInt
    model: str
    choices: list[TextChoice]
    usage: UsageReply


class ModelLimits(BaseModel):
    """What one request may have: settings of the server."""

    max_images: StrictInt
    max_image_bytes: StrictInt
    max_image_pixels: StrictInt
    max_body_bytes: StrictInt
    max_output_tokens: StrictInt


class ImagePreparation(BaseModel):
    """What becomes of an image: height and width in pixels, visual tokens each."""

    height: StrictInt
    width: StrictInt
    fit: Literal["pad", "crop", "stretch"]
    tokens: StrictInt


class Model(BaseModel):
    """A model of this server."""

    id: str
    object: Literal["model"] = "model"
    created: StrictInt
    owned_by: Literal["fastvlm"] = "fastvlm"
    parent: str | None = Field(None, description="The model that an adapter stands on.")
    description: str | None = Field(None, description="What the model can and cannot do.")
    max_model_len: StrictInt | None = Field(None, description="Tokens of a conversation, reply included.")
    limits: ModelLimits
    image: ImagePreparation | None = None


class ModelList(BaseModel):
    """The reply of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class State(BaseModel):
    """The reply of /health and /ready."""

    status: Literal["starting", "warming up", "ready", "stopping", "failed"]
    is_ready: StrictBool


class ErrorDetails(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every error response."""

    error: ErrorDetails
