"""/v1/chat/completions (openai-python 3.54, `types/chat`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fastvlm.server.context import ServerContext
from fastvlm.server.conversation import Part, conversation
from fastvlm.server.generation import GenerationRequest
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import invalid
from fastvlm.server.openai.formatter import OpenAiFormatter, ReplyObject
from fastvlm.server.openai.logprobs import TokenLogprob
from fastvlm.server.openai.sampling import SamplingRequest, TopLogprobs, openai_params
from fastvlm.server.request_parts import MAX_PARTS, Label, Strict, refuse_tools

_Nothing = Annotated[list[Any], Field(max_length=0)]


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """An image as a data URI, or the URL of an image on an allowed host."""

    url: str = Field(description="data:image/png;base64,... or, if the server allows its host, https://...")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Has no effect: FastVLM has one resolution."
    )
    pages: str | None = Field(
        None, max_length=200, description="Of a PDF, if the server accepts them: 2 or 1-3,5; all if not given."
    )


class ImagePart(Strict):
    """An image in a user's message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class VideoPart(Strict):
    """A video in a user's message, as vLLM takes it, if the server accepts videos."""

    type: Literal["video_url"]
    video_url: ImageUrl | str


class FileData(Strict):
    """The content of a file as a data URI."""

    file_data: str = Field(description="data:application/pdf;base64,...")
    filename: Label | None = Field(None, description="Has no effect.")


class FilePart(Strict):
    """A file in a user's message, such as a PDF, if the server accepts them."""

    type: Literal["file"]
    file: FileData


_ContentPart = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]
_ContentParts = Annotated[list[_ContentPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class Message(Strict):
    """One turn. The other fields of a reply may be sent back with it if they are null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | _ContentParts | None = Field(None, description="May be null only for an assistant's message.")
    name: Label | None = Field(None, description="Has no effect.")
    refusal: None = None
    annotations: _Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: _Nothing | None = None


class JsonSchemaFormat(Strict):
    """A JSON schema and its name."""

    name: str = Field("reply", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Every schema is enforced, with or without this.")


class PlainFormat(Strict):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema of the reply; None for text."""
        return {"type": "object"} if self.type == "json_object" else None


class SchemaFormat(Strict):
    """JSON of a schema, enforced token by token."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


class ImageSettings(Strict):
    """How this request's images are prepared (vLLM's `mm_processor_kwargs`)."""

    image_size: int | tuple[int, int] | None = Field(
        default=None, description="Side, or height and width, in pixels: multiples of 64, at most the server's own."
    )
    image_fit: Literal["pad", "crop", "stretch"] | None = None


class StructuredOutputs(Strict):
    """vLLM's form of structured output; JSON schemas only."""

    json_: dict[str, Any] = Field(alias="json")


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    mm_processor_kwargs: ImageSettings | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's way to give a JSON schema.")
    guided_json: dict[str, Any] | None = Field(None, description="vLLM's older way to give a JSON schema.")
    add_generation_prompt: bool | None = Field(None, description="vLLM's; false only with continue_final_message.")
    continue_final_message: bool | None = Field(
        None, description="vLLM's: the reply continues the assistant's message at the end."
    )
    tools: list[Any] | None = Field(None, max_length=128, description="Not supported; an empty list is.")
    tool_choice: Any = Field(None, description="Not supported; none or auto only.")
    parallel_tool_calls: bool | None = Field(None, description="Has no effect.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = Field(
        None, description="Not supported; text only."
    )
    store: bool | None = Field(None, description="Has no effect: nothing is stored.")
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = Field(None, description="Has no effect.")
    service_tier: Label | None = Field(None, description="Has no effect.")
    safety_identifier: Label | None = Field(None, description="Has no effect.")
    prompt_cache_key: Label | None = Field(None, description="Has no effect: common prefixes are found by content.")


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


class ChatCompletion(ReplyObject):
    """The reply of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


def read_chat(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of a chat request.

    Raises:
        ApiError: the body is not a :class:`ChatRequest`; a message without content that is not the assistant's; an
            assistant's message at the end; see also :func:`conversation`.
    """
    request = parse(body, ChatRequest, context.settings)
    refuse_tools(request.tools, request.tool_choice)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", param="top_logprobs")
    turns = [
        (message.role, list(_parts(message, f"messages[{index}]"))) for index, message in enumerate(request.messages)
    ]
    is_continued, images = bool(request.continue_final_message), request.mm_processor_kwargs
    _check_end(request, is_continued=is_continued)
    return GenerationRequest(
        model=request.model,
        prompts=[conversation(context, turns)],
        params=openai_params(
            request,
            context.settings,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            keep_whitespace=is_continued,
        ),
        is_continued=is_continued,
        formatter=ChatFormatter(request, context.logprobs),
        num_choices=request.n or 1,
        is_stream=bool(request.stream),
        schema=_schema(request),
        image_size=None if images is None else images.image_size,
        image_fit=None if images is None else images.image_fit,
    )


def _parts(message: Message, place: str) -> Iterator[Part]:
    place = f"{place}.content"
    if message.content is None and message.role != "assistant":
        raise invalid(f"{place} is missing or null.", param=place, code="missing_required_parameter")
    if not isinstance(message.content, list):
        yield Part("text", message.content or "", place)
        return
    for index, part in enumerate(message.content):
        if isinstance(part, TextPart):
            yield Part("text", part.text, f"{place}[{index}].text")
        elif isinstance(part, FilePart):
            yield Part("image", part.file.file_data, f"{place}[{index}].file.file_data")
        else:
            url = part.image_url if isinstance(part, ImagePart) else part.video_url
            field = f"{place}[{index}].{part.type}"
            yield (
                Part("image", url, field) if isinstance(url, str) else Part("image", url.url, f"{field}.url", url.pages)
            )


def _check_end(request: ChatRequest, *, is_continued: bool) -> None:
    """Raise ApiError unless the conversation ends as the request says."""
    last, is_opened = f"messages[{len(request.messages) - 1}]", request.add_generation_prompt
    if is_continued and is_opened:
        raise invalid("continue_final_message needs add_generation_prompt to be false.", param="add_generation_prompt")
    if is_opened is False and not is_continued:
        raise invalid(
            "add_generation_prompt is false; that needs continue_final_message.", param="add_generation_prompt"
        )
    if is_continued != (request.messages[-1].role == "assistant"):
        role = request.messages[-1].role
        advice = (
            "continue_final_message needs an assistant's message at the end."
            if is_continued
            else ("End with a user message, or set continue_final_message.")
        )
        raise invalid(f"{last} has the role {role!r}. {advice}", param=last)


def _schema(request: ChatRequest) -> dict[str, Any] | None:
    """The schema of the reply, which the request may give in one of three ways."""
    wanted, ways = request.response_format, list[dict[str, Any]]()
    if isinstance(wanted, SchemaFormat):
        ways.append(wanted.json_schema.schema_)
    elif wanted is not None and wanted.json_schema is not None:
        ways.append(wanted.json_schema)
    ways += [] if request.structured_outputs is None else [request.structured_outputs.json_]
    ways += [] if request.guided_json is None else [request.guided_json]
    if len(ways) > 1:
        raise invalid("Give one of response_format, structured_outputs and guided_json.", param="response_format")
    return ways[0] if ways else None


class ChatFormatter(OpenAiFormatter):
    """Formats the replies to a chat request."""

    id_prefix, reply_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _first_delta(self) -> dict[str, Any]:
        return {"delta": ReplyMessage(content="").model_dump()}

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": ReplyMessage(content=text).model_dump()}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, index: int, entries: list[TokenLogprob]) -> dict[str, Any]:  # noqa: ARG002 - as the base class
        return ChoiceLogprobs(content=entries).model_dump()
