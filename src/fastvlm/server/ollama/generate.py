"""/api/chat and /api/generate (ollama-python 0.6.3, `_types.py`; ollama's docs/api.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from fastvlm.engine.types import Completion, SamplingParams, TokenEvent, Usage
from fastvlm.server.context import ServerContext
from fastvlm.server.conversation import Part, conversation
from fastvlm.server.generation import GenerationRequest
from fastvlm.server.http.body import parse
from fastvlm.server.http.errors import ApiError, error_body, invalid
from fastvlm.server.http.response_writer import json_bytes
from fastvlm.server.request_parts import MAX_PARTS, Label, StopString, StopStrings, Strict, refuse_tools
from fastvlm.server.sampling import sampling_params

LINES = "application/x-ndjson"
_Images = Annotated[list[str], Field(max_length=MAX_PARTS, fail_fast=True, description="Encoded images in base64.")]
_NoEffect = Annotated[float | None, Field(description="Has no effect.")]


class Options(Strict):
    """Ollama's options; what only its own engine has is accepted without effect."""

    temperature: float | None = Field(None, ge=0, le=100, description="0, the default, is greedy.")
    num_predict: int | None = Field(None, ge=-2, lt=2**31, description="Tokens of the reply; -1 is the server's limit.")
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-1, lt=2**63)
    stop: StopString | StopStrings | None = None
    presence_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    frequency_penalty: Literal[0] | None = Field(None, description="Not supported; 0 only.")
    num_ctx: _NoEffect = None
    num_keep: _NoEffect = None
    num_batch: _NoEffect = None
    num_gpu: _NoEffect = None
    main_gpu: _NoEffect = None
    num_thread: _NoEffect = None
    repeat_last_n: _NoEffect = None
    use_mmap: bool | None = Field(None, description="Has no effect.")
    numa: bool | None = Field(None, description="Has no effect.")


class OllamaRequest(Strict):
    """Parameters that chats and texts share."""

    model: str = Field(description="A name listed by /api/tags; `:latest` may follow it.")
    stream: bool | None = Field(None, description="true unless it is false.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="json, or a JSON schema.")
    options: Options | None = None
    keep_alive: Label | float | None = Field(None, description="Has no effect: the model stays open.")
    think: Literal[False] | None = Field(None, description="Not supported; false only.")

    @property
    def served_name(self) -> str:
        """The model's name without Ollama's tag."""
        return self.model.removesuffix(":latest")

    @property
    def schema_(self) -> dict[str, Any] | None:
        """The schema of the reply."""
        return ({"type": "object"} if self.format == "json" else None) if isinstance(self.format, str) else self.format

    def params(self, context: ServerContext) -> SamplingParams:
        """The sampling parameters."""
        given = Options.model_validate({}) if self.options is None else self.options
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
        return sampling_params(
            context.settings,
            max_tokens=given.num_predict,
            repetition_penalty=given.repeat_penalty,
            **{name: getattr(given, name) for name in names},
        )


class ChatMessage(Strict):
    """One turn; its images come before its text."""

    role: Literal["system", "user", "assistant"]
    content: str = ""
    images: _Images | None = None
    thinking: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class OllamaChatRequest(OllamaRequest):
    """POST /api/chat. Without messages it tells that the model is loaded."""

    messages: Annotated[list[ChatMessage], Field(max_length=MAX_PARTS, fail_fast=True)] = Field([])
    tools: list[Any] | None = Field(None, max_length=128, description="Not supported; an empty list is.")


class OllamaGenerateRequest(OllamaRequest):
    """POST /api/generate: one question. Without a prompt and images it tells that the model is loaded."""

    prompt: str = ""
    system: str | None = None
    images: _Images | None = None
    raw: Literal[False] | None = Field(None, description="Not supported; /v1/completions has no chat template.")
    suffix: Literal[""] | None = Field(None, description="Not supported.")
    template: Literal[""] | None = Field(None, description="Not supported: the template is the model's.")
    context: Annotated[list[int], Field(max_length=0)] | None = Field(
        None, description="Not supported: send a conversation to /api/chat."
    )


class _Reply(BaseModel):
    """What both replies have; times are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class AssistantMessage(BaseModel):
    """The reply's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class OllamaChatReply(_Reply):
    """The reply of /api/chat; a stream is one of these a line."""

    message: AssistantMessage


class OllamaGenerateReply(_Reply):
    """The reply of /api/generate; a stream is one of these a line."""

    response: str


def read_chat(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of /api/chat.

    Raises:
        ApiError: the body is not an :class:`OllamaChatRequest`; tools; see also :func:`conversation`.
    """
    request = parse(body, OllamaChatRequest, context.settings)
    refuse_tools(request.tools, None)
    if request.messages and request.messages[-1].role != "user":
        last = f"messages[{len(request.messages) - 1}]"
        role = request.messages[-1].role
        raise invalid(f"{last} has the role {role!r}. End with a user message.", param=last)
    turns = [
        (
            message.role,
            _parts(message.images, message.content, f"messages[{index}].images", f"messages[{index}].content"),
        )
        for index, message in enumerate(request.messages)
    ]
    return _generation(context, request, turns, ChatFormatter(request.model))


def read_generate(context: ServerContext, body: bytes) -> GenerationRequest:
    """Read the body of /api/generate.

    Raises:
        ApiError: the body is not an :class:`OllamaGenerateRequest`; see also :func:`conversation`.
    """
    request = parse(body, OllamaGenerateRequest, context.settings)
    turns = [("system", [Part("text", request.system, "system")])] if request.system else []
    question = _parts(request.images, request.prompt, "images", "prompt")
    is_asked = bool(request.images or request.prompt)
    return _generation(
        context, request, [*turns, ("user", question)] if is_asked else [], GenerateFormatter(request.model)
    )


def _parts(images: Sequence[str] | None, text: str, images_place: str, text_place: str) -> list[Part]:
    """Images as Ollama's clients send them, in base64, then the text."""
    parts = [
        Part("image", f"data:;base64,{data}", f"{images_place}[{index}]") for index, data in enumerate(images or ())
    ]
    return [*parts, Part("text", text, text_place)] if text or not parts else parts


def _generation(
    context: ServerContext,
    request: OllamaRequest,
    turns: Sequence[tuple[str, Sequence[Part]]],
    formatter: _OllamaFormatter,
) -> GenerationRequest:
    return GenerationRequest(
        model=request.served_name,
        prompts=[conversation(context, turns)] if turns else [],
        params=request.params(context),
        formatter=formatter,
        is_stream=request.stream is not False,
        schema=request.schema_,
    )


class _OllamaFormatter(ABC):
    """Formats replies: one JSON object, or one a line."""

    stream_type = LINES
    path: ClassVar[str]

    def __init__(self, model: str) -> None:
        self._model = model
        self._completion: Completion | None = None

    def events(self, index: int, event: TokenEvent) -> bytes:  # noqa: ARG002 - there is one choice
        """A line for each piece of text."""
        self._completion = event.completion
        return self._line({**self._content(event.text), "done": False}) if event.text else b""

    def end(self, usage: Usage) -> bytes:
        """The last line: why the reply ended, token counts and times."""
        return self._line({**self._content(""), **_summary(self._completion, usage)})

    def failure(self, error: ApiError) -> bytes:
        """A line with the error."""
        return json_bytes(error_body(error, self.path)) + b"\n"

    def reply(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        """The whole reply."""
        completion = completions[0] if completions else None
        return self._line({**self._content(completion.text if completion else ""), **_summary(completion, usage)})

    def _line(self, content: dict[str, Any]) -> bytes:
        now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        return json_bytes({"model": self._model, "created_at": now, **content}) + b"\n"

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """The field of the text."""


class ChatFormatter(_OllamaFormatter):
    """Formats the replies of /api/chat."""

    path = "/api/chat"

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": AssistantMessage(content=text).model_dump()}


class GenerateFormatter(_OllamaFormatter):
    """Formats the replies of /api/generate."""

    path = "/api/generate"

    def _content(self, text: str) -> dict[str, Any]:
        return {"response": text}


def _summary(completion: Completion | None, usage: Usage) -> dict[str, Any]:
    """The fields of the end; None: nothing was asked, as clients do to load a model."""
    if completion is None:
        return {"done": True, "done_reason": "load"}
    timings = completion.timings
    prompt_ms = timings.encode + timings.prefill
    decoding_ms = max(0.0, timings.total - timings.preprocess - timings.wait - prompt_ms)
    return {
        "done": True,
        "done_reason": "length" if completion.finish_reason == "length" else "stop",
        "total_duration": _ns(timings.total),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _ns(prompt_ms),
        "eval_count": usage.completion_tokens,
        "eval_duration": _ns(decoding_ms),
    }


def _ns(milliseconds: float) -> int:
    return round(1e6 * milliseconds)
