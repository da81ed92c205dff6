"""The OpenAPI 3.1 document and its HTML page, made from the route table and the schemas that validate requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fastvlm import __version__
from fastvlm.server.http.access import needs_key
from fastvlm.server.http.errors import error_model
from fastvlm.server.routes import API_ROUTES, ApiRoute, State

DOCS_STYLE = Path(__file__).parent / "docs.css"
_DOCS_PAGE = Path(__file__).parent / "docs.html"
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is wrong; `param` and `code` say where and why.",
    401: "An API key is needed.",
    403: "The Host or Origin header is not allowed.",
    404: "The model does not exist.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The queue is full; Retry-After says when to retry.",
    500: "The server failed.",
    503: "The server is starting or stopping; Retry-After says when to retry.",
    504: "The reply took too long.",
}


def document(model_names: Sequence[str], *, has_keys: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        model_names: names that clients may use; the first stands in the examples.
        has_keys: an API key is needed.
    """
    requests = [route.request for route in API_ROUTES if route.request is not None]
    replies = [route.reply for route in API_ROUTES if route.reply is not None]
    errors = [error_model(route.path) for route in API_ROUTES]
    models: dict[type[BaseModel], None] = dict.fromkeys([*requests, *replies, *errors])
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    for request in requests:
        schemas["$defs"][request.__name__]["properties"]["model"]["enum"] = list(model_names)
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastvlm",
            "version": __version__,
            "description": "FastVLM behind the APIs of OpenAI, Ollama and Anthropic.",
        },
        "paths": {},
        "components": {"schemas": schemas["$defs"]},
    }
    for route in API_ROUTES:
        operation = _operation(route, model_names[0])
        if has_keys and needs_key(route.path):
            operation["security"] = [{"key": []}]
        content["paths"][route.path.replace(":path}", "}")] = {"post" if route.request else "get": operation}
    if has_keys:
        content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return content


def _operation(route: ApiRoute, model_name: str) -> dict[str, Any]:
    reply = {"text/plain": {"schema": {"type": "string"}}} if route.reply is None else _json(route.reply)
    content = _json(error_model(route.path))
    errors = {str(status): {"description": _ERRORS[status], "content": content} for status in route.errors}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": {"description": "The reply.", "content": reply}, **errors},
    }
    if route.reply is State:
        operation["responses"]["503"] = {"description": "Not ready.", "content": reply}
    if route.read is not None:
        # No type: readers of OpenAPI 3.1 take it for the whole text, newer ones for a single event.
        reply[route.stream_type] = {"schema": {"description": "With stream: a JSON object for each event."}}
    if route.request is not None:
        body = _json(route.request)
        body["application/json"]["example"] = {"model": model_name, **route.example}
        operation["requestBody"] = {"required": True, "content": body}
    if "{model" in route.path:
        schema = {"type": "string", "minLength": 1}
        parameter = {"name": "model", "in": "path", "required": True, "schema": schema, "example": model_name}
        operation["parameters"] = [parameter]
    return operation


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}


def docs_page(content: dict[str, Any]) -> str:
    """The document as HTML without scripts, which loads nothing from elsewhere."""
    return jinja2.Environment(autoescape=True).from_string(_DOCS_PAGE.read_text(encoding="utf-8")).render(content)
