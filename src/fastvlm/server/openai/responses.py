"""/v1/responses (openai-python 3.57, `types/responses/*.py`): the stateless part; nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fastvlm.engine.types import Completion, TokenEvent, Usage
from fastvlm.server.context import ServerContext
from fastvlm.server.conversation import Part, conversation
from fastvlm.server.generation import GenerationRequest
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import ApiError, invalid
from fastvlm.server.http.response_writer import json_bytes, named_event
from fastvlm.server.openai.chat import PlainFormat
from fastvlm.server.request_parts import MAX_PARTS, Label, Strict, refuse_tools
from fastvlm.server.sampling import sampling_params

_Nothing = Annotated[list[Any], Field(max_length=0)]
_Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputText(Strict):
    """A text in a message."""

    type: Literal["input_text"]
    text: str


class InputImage(Strict):
    """An image in a user's message, as a data URI or a URL of an allowed host."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Has no effect.")


class InputFile(Strict):
    """A file in a user's message as a data URI, such as a PDF, if the server accepts them."""

    type: Literal["input_file"]
    file_data: str
    filename: Label | None = Field(None, description="Has no effect.")


class OutputText(Strict):
    """A text of an earlier reply."""

    type: Literal["output_text"]
    text: str
    annotations: _Nothing | None = None
    logprobs: _Nothing | None = None


_Content = Annotated[InputText | InputImage | InputFile | OutputText, Field(discriminator="type")]


class InputMessage(Strict):
    """One turn; an earlier reply may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Content], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    id: Label | None = Field(None, description="Has no effect.")
    status: Label | None = Field(None, description="Has no effect.")
    phase: Label | None = Field(None, description="Has no effect.")


class JsonSchemaText(Strict):
    """JSON of a schema, enforced token by token."""

    type: Literal["json_schema"]
    name: str = Field("reply", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Every schema is enforced, with or without this.")


class TextOptions(Strict):
    """The form of the reply."""

    format: Annotated[PlainFormat | JsonSchemaText, Field(discriminator="type")] | None = None
    verbosity: Label | None = Field(None, description="Has no effect.")


class ResponseRequest(Strict):
    """POST /v1/responses."""

    model: str = Field(description="A name listed by /v1/models.")
    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    text: TextOptions | None = None
    store: bool | None = Field(None, description="Has no effect: nothing is stored.")
    previous_response_id: None = Field(None, description="Not supported: send the conversation as input.")
    conversation: None = Field(None, description="Not supported: send the conversation as input.")
    background: Literal[False] | None = Field(None, description="Not supported; false only.")
    tools: list[Any] | None = Field(None, max_length=128, description="Not supported; an empty list is.")
    tool_choice: Any = Field(None, description="Not supported; none or auto only.")
    parallel_tool_calls: bool | None = Field(None, description="Has no effect.")
    truncation: Literal["disabled"] | None = Field(None, description="Not supported; disabled only.")
    include: _Nothing | None = Field(None, description="Not supported; an empty list is.")
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = Field(None, description="Is sent back.")
    service_tier: Label | None = Field(None, description="Has no effect.")
    safety_identifier: Label | None = Field(None, description="Has no effect.")
    prompt_cache_key: Label | None = Field(None, description="Has no effect.")
    user: Label | None = Field(None, description="Has no effect.")


class OutputTextReply(BaseModel):
    """The text of a reply."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The message of a reply."""

    type: Literal["message"] = "message"
    id: str
    status: _Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputTextReply]


class InputDetails(BaseModel):
    """Parts of the input's tokens."""

    cached_tokens: int
    image_tokens: int


class OutputDetails(BaseModel):
    """Parts of the output's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class Incomplete(BaseModel):
    """Why a reply was cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Failure(BaseModel):
    """Why there is no reply."""

    code: str
    message: str


class ResponseObject(BaseModel):
    """The reply of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: _Status
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    output: list[OutputMessage]
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str]


def read_response(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of a response request.

    Raises:
        ApiError: the body is not a :class:`ResponseRequest`; tools; an assistant's message at the end; see also
            :func:`conversation`.
    """
    request = parse(body, ResponseRequest, context.settings)
    refuse_tools(request.tools, request.tool_choice)
    turns = [("system", [Part("text", request.instructions, "instructions")])] if request.instructions else []
    turns += list(_turns(request.input))
    if turns[-1][0] == "assistant":
        raise invalid("input ends with a message of the assistant's. End with a user message.", param="input")
    form = request.text.format if request.text is not None else None
    if isinstance(form, JsonSchemaText):
        schema: Mapping[str, Any] | None = form.schema_
    else:
        schema = None if form is None else form.json_schema
    return GenerationRequest(
        model=request.model,
        prompts=[conversation(context, turns)],
        params=sampling_params(
            context.settings,
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
        ),
        formatter=ResponseFormatter(request),
        is_stream=bool(request.stream),
        schema=schema,
    )


def _turns(given: str | Sequence[InputMessage]) -> Iterator[tuple[str, list[Part]]]:
    if isinstance(given, str):
        yield "user", [Part("text", given, "input")]
        return
    for index, message in enumerate(given):
        yield message.role, list(_parts(message.content, f"input[{index}].content"))


def _parts(content: str | Sequence[InputText | InputImage | InputFile | OutputText], place: str) -> Iterator[Part]:
    if isinstance(content, str):
        yield Part("text", content, place)
        return
    for index, one in enumerate(content):
        if isinstance(one, InputImage):
            yield Part("image", one.image_url, f"{place}[{index}].image_url")
        elif isinstance(one, InputFile):
            yield Part("image", one.file_data, f"{place}[{index}].file_data")
        else:
            yield Part("text", one.text, f"{place}[{index}].text")


class ResponseFormatter:
    """Formats the reply to a response request."""

    stream_type = "text/event-stream"

    def __init__(self, request: ResponseRequest) -> None:
        form = request.text.format if request.text is not None else None
        self._response = ResponseObject(
            id=f"resp_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            model=request.model,
            status="in_progress",
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            output=[],
            temperature=request.temperature,
            text={"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
            top_p=request.top_p,
            metadata=request.metadata or {},
        )
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._num_events = 0
        self._completion: Completion | None = None

    def events(self, index: int, event: TokenEvent) -> bytes:  # noqa: ARG002 - there is one choice
        """The events of one token."""
        self._completion = event.completion
        data = b"" if self._num_events else self._beginning()
        if event.text:
            data += self._event("response.output_text.delta", **self._place(), delta=event.text, logprobs=[])
        return data

    def _beginning(self) -> bytes:
        """The events before the first text."""
        response = self._response.model_dump()
        item = self._message("in_progress", []).model_dump()
        return b"".join(
            (
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place(), part=OutputTextReply(text="").model_dump()),
            )
        )

    def end(self, usage: Usage) -> bytes:
        """The whole text again, then the whole response."""
        assert self._completion is not None  # noqa: S101 - the last event had it
        self._finish(self._completion, usage)
        [item] = self._response.output
        [part] = item.content
        return b"".join(
            (
                self._event("response.output_text.done", **self._place(), text=part.text, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=part.model_dump()),
                self._event("response.output_item.done", output_index=0, item=item.model_dump()),
                self._event(f"response.{self._response.status}", response=self._response.model_dump()),
            )
        )

    def failure(self, error: ApiError) -> bytes:
        """An event with the error."""
        self._response.status, self._response.error = "failed", Failure(code=error.code, message=error.message)
        return self._event("response.failed", response=self._response.model_dump())

    def reply(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        """The whole reply."""
        [completion] = completions
        self._finish(completion, usage)
        return json_bytes(self._response.model_dump())

    def _finish(self, completion: Completion, usage: Usage) -> None:
        is_cut = completion.finish_reason == "length"
        self._response.status = "incomplete" if is_cut else "completed"
        self._response.incomplete_details = Incomplete() if is_cut else None
        self._response.output = [self._message(self._response.status, [OutputTextReply(text=completion.text)])]
        self._response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(
                cached_tokens=usage.cached_prompt_tokens, image_tokens=usage.image_tokens
            ),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )

    def _message(self, status: _Status, content: list[OutputTextReply]) -> OutputMessage:
        return OutputMessage(id=self._message_id, status=status, content=content)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **content: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return named_event(name, {"sequence_number": number, **content})
