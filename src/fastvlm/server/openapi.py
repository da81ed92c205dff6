"""The OpenAPI 3.1 document and its HTML page, made from the route table and the schemas that validate requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fastvlm import __version__
from fastvlm.server.http.access import needs_key
from fastvlm.server.openai.schemas import ErrorReply, State
from fastvlm.server.routes import API_ROUTES, ApiRoute, EngineRoute

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
    requests = [route.request for route in API_ROUTES if isinstance(route, EngineRoute)]
    replies = [route.reply for route in API_ROUTES if route.reply is not None]
    models: dict[type[BaseModel], None] = dict.fromkeys([*requests, *replies, ErrorReply])
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    for request in requests:
        schemas["$defs"][request.__name__]["properties"]["model"]["enum"] = list(model_names)
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "fastvlm", "version": __version__, "description": "FastVLM behind OpenAI's API."},
        "paths": {},
        "components": {"schemas": schemas["$defs"]},
    }
    for route in API_ROUTES:
        security: dict[str, Any] = {"security": [{"key": []}]} if has_keys and needs_key(route.path) else {}
        if isinstance(route, EngineRoute):
            operation = {"post": {**_engine_operation(route, model_names[0]), **security}}
        else:
            operation = {"get": {**_get_operation(route, model_names[0]), **security}}
        content["paths"][route.path.replace(":path}", "}")] = operation
    if has_keys:
        content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return content


def _engine_operation(route: EngineRoute, model_name: str) -> dict[str, Any]:
    example = {"model": model_name, **route.example}
    replies = {
        **_json(route.reply),
        # No type: readers of OpenAPI 3.1 take it for the whole text, newer ones for a single event.
        "text/event-stream": {"schema": {"description": "With stream: data: {...} lines, [DONE]."}},
    }
    return {
        "summary": route.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _reference(route.request), "example": example}},
        },
        "responses": {"200": {"description": "The reply.", "content": replies}, **_errors(_ERRORS)},
    }


def _get_operation(route: ApiRoute, model_name: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}} if route.reply is None else _json(route.reply)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": {"description": "OK.", "content": content}, **_errors(route.errors)},
    }
    if route.reply is State:
        operation["responses"]["503"] = {"description": "Not ready.", "content": content}
    if "{model" in route.path:
        schema = {"type": "string", "minLength": 1}
        parameter = {"name": "model", "in": "path", "required": True, "schema": schema, "example": model_name}
        operation["parameters"] = [parameter]
    return operation


def _errors(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): {"description": _ERRORS[status], "content": _json(ErrorReply)} for status in statuses}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def docs_page(content: dict[str, Any]) -> str:
    """The document as HTML without scripts, which loads nothing from elsewhere."""
    schemas = content["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        "<title>fastvlm API</title><link rel=stylesheet href=/docs.css>",
        f"<h1>fastvlm API</h1><p>{escape(content['info']['description'])} ",
        "<a href=/openapi.json>OpenAPI document</a></p>",
    ]
    for path, methods in content["paths"].items():
        for method, operation in methods.items():
            parts += [f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation['summary'])}</p>"]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body:
                parts += [_fields(schemas[body["schema"]["$ref"].rpartition("/")[2]])]
            rows = (
                f"<tr><td>{status}<td>{escape(one['description'])}" for status, one in operation["responses"].items()
            )
            parts += ["<table><tr><th>status<th>meaning", *rows, "</table>"]
    return "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}<td>{escape(_type(field))}"
        f"<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field<th>type<th>notes{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    """``string | null``, ``Message[]``."""
    if "anyOf" in field or "oneOf" in field:
        return " | ".join(_type(option) for option in field.get("anyOf") or field["oneOf"])
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if field.get("type") == "array":
        return f"{_type(field.get('items', {}))}[]"
    return str(field.get("type") or field.get("const") or "any")


DOCS_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }
code { font-family: ui-monospace, monospace }
"""
