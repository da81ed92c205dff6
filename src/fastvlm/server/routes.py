"""The routes of the API: one table, which Starlette's routes, the OpenAPI document and the metrics are made from.

To add a route, add a line to :data:`API_ROUTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastvlm.server.anthropic.messages import MessageReply, MessagesRequest, read_messages
from fastvlm.server.endpoint import GenerationEndpoint, QueryEndpoint
from fastvlm.server.generation import ReadRequest
from fastvlm.server.http.errors import error_response, no_such_model
from fastvlm.server.metrics import CONTENT_TYPE
from fastvlm.server.model_list import Model, ModelList, list_models
from fastvlm.server.ollama import generate as ollama
from fastvlm.server.ollama import models
from fastvlm.server.ollama.generate import (
    OllamaChatReply,
    OllamaChatRequest,
    OllamaGenerateReply,
    OllamaGenerateRequest,
)
from fastvlm.server.ollama.models import ModelDetails, ShowRequest, TagList, Version
from fastvlm.server.openai.chat import ChatCompletion, ChatRequest, read_chat
from fastvlm.server.openai.completions import CompletionRequest, TextCompletion, read_completion
from fastvlm.server.openai.responses import ResponseObject, ResponseRequest, read_response
from fastvlm.server.service import Service, Status

_GENERATION_ERRORS = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)


class State(BaseModel):
    """The reply of /health and /ready."""

    status: Status
    is_ready: bool


@dataclass(frozen=True)
class ApiRoute:
    """A route of the API.

    Args:
        path: Starlette's, with parameters in braces.
        summary: what the route is for.
        reply: schema of the response; None for plain text.
        errors: statuses of other responses.
        get: makes the response of a GET route at once: it runs in the event loop.
        post: the same for a POST route, of its body.
        read: reads the body of a POST route, which the engine answers.
        request: schema of that body.
        example: such a body without its `model`.
        stream_type: media type of a streamed reply.
    """

    path: str
    summary: str
    reply: type[BaseModel] | None
    errors: tuple[int, ...] = _GENERATION_ERRORS
    get: Callable[[Service, Request], Response] | None = None
    post: Callable[[Service, bytes], Response] | None = None
    read: ReadRequest | None = None
    request: type[BaseModel] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    stream_type: str = "text/event-stream"

    def starlette_route(self, service: Service) -> Route:
        """The route of one server."""
        if self.read is not None:
            return Route(self.path, GenerationEndpoint(service, self.read), methods=["POST"])
        if self.post is not None:
            return Route(self.path, QueryEndpoint(service, self.post), methods=["POST"])
        get = self.get
        assert get is not None  # noqa: S101 - a route has one of the three
        return get_route(self.path, lambda request: get(service, request))


def get_route(path: str, answer: Callable[[Request], Response]) -> Route:
    """A GET route; `answer` runs in the event loop, not in a thread."""

    async def endpoint(request: Request) -> Response:
        return answer(request)

    return Route(path, endpoint)


def _list_models(service: Service, _: Request) -> Response:
    return JSONResponse(ModelList(data=list_models(service)).model_dump())


def _get_model(service: Service, request: Request) -> Response:
    for model in list_models(service):
        if model.id == request.path_params["model"]:
            return JSONResponse(model.model_dump())
    return error_response(no_such_model(service.settings.served_names))


def _health(service: Service, _: Request) -> Response:
    return _state(service, is_good=service.status != "failed")


def _ready(service: Service, _: Request) -> Response:
    return _state(service, is_good=service.is_ready)


def _state(service: Service, *, is_good: bool) -> Response:
    content = State(status=service.status, is_ready=service.is_ready).model_dump()
    return JSONResponse(content, 200 if is_good else 503, headers={} if is_good else {"Retry-After": "1"})


def _metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE})


_CHAT = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 8}
_TEXT = {"prompt": "A", "max_tokens": 8}
_RESPONSE = {"input": "What can you do?", "max_output_tokens": 8}
_OLLAMA_CHAT = {"messages": [{"role": "user", "content": "What can you do?"}], "options": {"num_predict": 8}}
_OLLAMA_TEXT = {"prompt": "What can you do?", "options": {"num_predict": 8}}

# fmt: off
API_ROUTES = (
    ApiRoute("/v1/chat/completions", "Answer a chat with images", ChatCompletion,
             read=read_chat, request=ChatRequest, example=_CHAT),
    ApiRoute("/v1/completions", "Continue a text", TextCompletion,
             read=read_completion, request=CompletionRequest, example=_TEXT),
    ApiRoute("/v1/responses", "Answer a chat with images", ResponseObject,
             read=read_response, request=ResponseRequest, example=_RESPONSE),
    ApiRoute("/v1/messages", "Answer a chat with images, as Anthropic's API", MessageReply,
             read=read_messages, request=MessagesRequest, example=_CHAT),
    ApiRoute("/api/chat", "Answer a chat with images, as Ollama's API", OllamaChatReply,
             read=ollama.read_chat, request=OllamaChatRequest, example=_OLLAMA_CHAT,
             stream_type=ollama.LINES),
    ApiRoute("/api/generate", "Answer a question, as Ollama's API", OllamaGenerateReply,
             read=ollama.read_generate, request=OllamaGenerateRequest, example=_OLLAMA_TEXT,
             stream_type=ollama.LINES),
    ApiRoute("/api/show", "One model, as Ollama's API", ModelDetails, (400, 401, 403, 404, 408, 413, 415),
             post=models.show, request=ShowRequest),
    ApiRoute("/api/tags", "List the models, as Ollama's API", TagList, (401, 403), models.tags),
    ApiRoute("/api/ps", "List the open models, as Ollama's API", TagList, (401, 403), models.running),
    ApiRoute("/api/version", "The version, as Ollama's API", Version, (401, 403), models.version),
    ApiRoute("/v1/models", "List the models", ModelList, (401, 403, 503), _list_models),
    ApiRoute("/v1/models/{model:path}", "One model", Model, (401, 403, 404, 503), _get_model),
    ApiRoute("/health", "200 while the process works, 503 if the model could not be opened", State, (403,), _health),
    ApiRoute("/ready", "200 while requests are answered, 503 otherwise", State, (403,), _ready),
    ApiRoute("/metrics", "Metrics for Prometheus", None, (401, 403), _metrics),
)
# fmt: on
