"""/v1/messages (anthropic-python 2.14, `types/message*.py`)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fastvlm.engine.types import Completion, TokenEvent, Usage
from fastvlm.server.context import ServerContext
from fastvlm.server.conversation import Part, conversation
from fastvlm.server.generation import GenerationRequest
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import ApiError, error_body
from fastvlm.server.http.response_writer import json_bytes, named_event
from fastvlm.server.request_parts import MAX_PARTS, Label, StopStrings, Strict, refuse_tools
from fastvlm.server.sampling import sampling_params

PATH = "/v1/messages"
StopReason = Literal["end_turn", "max_tokens", "stop_sequence"]

_CacheControl = Annotated[dict[str, Any] | None, Field(description="Has no effect: prefixes are cached anyway.")]


class TextBlock(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str
    cache_control: _CacheControl = None
    citations: None = None


class Base64Source(Strict):
    """An encoded image."""

    type: Literal["base64"]
    media_type: Annotated[str, Field(max_length=100)]
    data: str


class UrlSource(Strict):
    """The URL of an image on an allowed host."""

    type: Literal["url"]
    url: str


class ImageBlock(Strict):
    """An image in a user's message, or a PDF as a document, if the server accepts them."""

    type: Literal["image", "document"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    title: Label | None = Field(None, description="Has no effect.")
    cache_control: _CacheControl = None


_Block = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
_Blocks = Annotated[list[_Block], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class InputMessage(Strict):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | _Blocks


class MessagesRequest(Strict):
    """POST /v1/messages. If the last message is the assistant's, the reply continues it."""

    model: str = Field(description="A name listed by /v1/models.")
    max_tokens: int = Field(ge=1)
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    metadata: dict[str, Label | None] | None = Field(None, max_length=16, description="Has no effect.")
    service_tier: Label | None = Field(None, description="Has no effect.")
    tools: list[Any] | None = Field(None, max_length=128, description="Not supported; an empty list is.")
    tool_choice: dict[str, Any] | None = Field(None, description="Not supported.")
    thinking: dict[Literal["type"], Literal["disabled"]] | None = Field(
        None, description="Not supported; disabled only."
    )


class TextContent(BaseModel):
    """The text of a reply."""

    type: Literal["text"] = "text"
    text: str


class MessageUsage(BaseModel):
    """Token counts; `cache_read_input_tokens` were not computed again and are not among the `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class MessageReply(BaseModel):
    """The reply of /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextContent]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


def read_messages(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of a messages request.

    Raises:
        ApiError: the body is not a :class:`MessagesRequest`; tools; see also :func:`conversation`.
    """
    request = parse(body, MessagesRequest, context.settings)
    refuse_tools(request.tools, request.tool_choice and request.tool_choice.get("type"))
    turns = [("system", list(_parts(request.system, "system")))] if request.system else []
    turns += [
        (message.role, list(_parts(message.content, f"messages[{index}].content")))
        for index, message in enumerate(request.messages)
    ]
    is_continued = request.messages[-1].role == "assistant"
    return GenerationRequest(
        model=request.model,
        prompts=[conversation(context, turns)],
        params=sampling_params(
            context.settings,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
            keep_whitespace=is_continued,
        ),
        formatter=MessagesFormatter(request.model),
        is_stream=bool(request.stream),
        is_continued=is_continued,
    )


def _parts(content: str | Sequence[TextBlock | ImageBlock], place: str) -> Iterator[Part]:
    if isinstance(content, str):
        yield Part("text", content, place)
        return
    for index, block in enumerate(content):
        if isinstance(block, TextBlock):
            yield Part("text", block.text, f"{place}[{index}].text")
        elif isinstance(block.source, UrlSource):
            yield Part("image", block.source.url, f"{place}[{index}].source.url")
        else:  # the type is found from the bytes
            yield Part("image", f"data:;base64,{block.source.data}", f"{place}[{index}].source.data")


class MessagesFormatter:
    """Formats the reply to a messages request."""

    stream_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._id, self._model = f"msg_{uuid.uuid4().hex}", model
        self._has_begun = False
        self._completion: Completion | None = None

    def events(self, index: int, event: TokenEvent) -> bytes:  # noqa: ARG002 - there is one choice
        """The events of one token."""
        self._completion = event.completion
        data = self._beginning()
        if event.text:
            delta = {"type": "text_delta", "text": event.text}
            data += _event("content_block_delta", index=0, delta=delta)
        return data

    def _beginning(self) -> bytes:
        """The events before the first text; the prompt's tokens are counted in the last event."""
        if self._has_begun:
            return b""
        self._has_begun = True
        nothing = MessageUsage(input_tokens=0, cache_read_input_tokens=0, output_tokens=0)
        message = self._message([], None, None, nothing)
        block = TextContent(text="").model_dump()
        return _event("message_start", message=message.model_dump()) + _event(
            "content_block_start", index=0, content_block=block
        )

    def end(self, usage: Usage) -> bytes:
        """The reason of the end, and the usage."""
        assert self._completion is not None  # noqa: S101 - the last event had it
        reason, stop = _stop(self._completion)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=delta, usage=_usage(usage).model_dump())
            + _event("message_stop")
        )

    def failure(self, error: ApiError) -> bytes:
        """An event with the error."""
        return named_event("error", error_body(error, PATH))

    def reply(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        """The whole reply."""
        [completion] = completions
        return json_bytes(self._message([completion.text], *_stop(completion), _usage(usage)).model_dump())

    def _message(
        self, texts: Sequence[str], reason: StopReason | None, stop: str | None, usage: MessageUsage
    ) -> MessageReply:
        return MessageReply(
            id=self._id,
            model=self._model,
            content=[TextContent(text=text) for text in texts],
            stop_reason=reason,
            stop_sequence=stop,
            usage=usage,
        )


def _event(name: str, **content: Any) -> bytes:
    return named_event(name, content)


def _stop(completion: Completion) -> tuple[StopReason, str | None]:
    """`stop_reason` and `stop_sequence`."""
    if completion.stop_string is not None:
        return "stop_sequence", completion.stop_string
    return ("max_tokens" if completion.finish_reason == "length" else "end_turn"), None


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.cached_prompt_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached, cache_read_input_tokens=cached, output_tokens=usage.completion_tokens
    )
