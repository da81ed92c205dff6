"""The routes of the API: one table, which Starlette's routes, the OpenAPI document and the metrics are made from.

To add a route, add a line to :data:`API_ROUTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastvlm.server.endpoint import EngineEndpoint, Handler
from fastvlm.server.http.errors import error_response, no_such_model
from fastvlm.server.metrics import CONTENT_TYPE
from fastvlm.server.model_list import list_models
from fastvlm.server.openai import schemas
from fastvlm.server.openai.completions import answer_chat, answer_completion
from fastvlm.server.service import Service


@dataclass(frozen=True)
class ApiRoute:
    """A GET route.

    Args:
        path: Starlette's, with parameters in braces.
        endpoint: makes the response at once: it runs in the event loop.
        summary: what the route is for.
        reply: schema of the response; None for plain text.
        errors: statuses of other responses.
    """

    path: str
    endpoint: Callable[[Service, Request], Response]
    summary: str
    reply: type[BaseModel] | None
    errors: tuple[int, ...]

    def starlette_route(self, service: Service) -> Route:
        """The route of one server."""
        return get_route(self.path, lambda request: self.endpoint(service, request))


@dataclass(frozen=True)
class EngineRoute:
    """A POST route that the engine answers; `example` is a request without its `model`."""

    path: str
    handler: Handler
    summary: str
    request: type[BaseModel]
    reply: type[BaseModel]
    example: Mapping[str, Any]

    def starlette_route(self, service: Service) -> Route:
        """The route of one server."""
        return Route(self.path, EngineEndpoint(service, self.handler), methods=["POST"])


def get_route(path: str, answer: Callable[[Request], Response]) -> Route:
    """A GET route; `answer` runs in the event loop, not in a thread."""

    async def endpoint(request: Request) -> Response:
        return answer(request)

    return Route(path, endpoint)


def _list_models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": list_models(service)})


def _get_model(service: Service, request: Request) -> Response:
    found = [model for model in list_models(service) if model["id"] == request.path_params["model"]]
    return JSONResponse(found[0]) if found else error_response(no_such_model(service.settings.served_names))


def _health(service: Service, _: Request) -> Response:
    return _state(service, is_good=service.status != "failed")


def _ready(service: Service, _: Request) -> Response:
    return _state(service, is_good=service.is_ready)


def _state(service: Service, *, is_good: bool) -> Response:
    content = {"status": service.status, "is_ready": service.is_ready}
    return JSONResponse(content, 200 if is_good else 503, headers={} if is_good else {"Retry-After": "1"})


def _metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE})


_CHAT = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 8}
_TEXT = {"prompt": "A", "max_tokens": 8}

# fmt: off
API_ROUTES: tuple[ApiRoute | EngineRoute, ...] = (
    EngineRoute("/v1/chat/completions", answer_chat, "Answer a chat with images",
                schemas.ChatRequest, schemas.ChatCompletion, _CHAT),
    EngineRoute("/v1/completions", answer_completion, "Continue a text",
                schemas.CompletionRequest, schemas.Completion, _TEXT),
    ApiRoute("/v1/models", _list_models, "List the models", schemas.ModelList, (401, 403, 503)),
    ApiRoute("/v1/models/{model:path}", _get_model, "One model", schemas.Model, (401, 403, 404, 503)),
    ApiRoute("/health", _health, "200 while the process works, 503 if the model could not be opened",
             schemas.State, (403,)),
    ApiRoute("/ready", _ready, "200 while requests are answered, 503 otherwise", schemas.State, (403,)),
    ApiRoute("/metrics", _metrics, "Metrics for Prometheus", None, (401, 403)),
)
# fmt: on
