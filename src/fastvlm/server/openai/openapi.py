"""The API's description (OpenAPI 3.1), made from the schemas that requests are checked with, and a page of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fastvlm import __version__
from fastvlm.server.openai.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorReply,
    Model,
    ModelList,
    State,
)

__all__ = ["DOCS_STYLE", "docs_page", "document"]

_MODELS = (ChatRequest, CompletionRequest, ChatCompletion, Completion, Model, ModelList, State, ErrorReply)
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request cannot be answered as it is; `param` and `code` say where and why.",
    401: "An API key is needed.",
    403: "The Host or Origin header is not allowed.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server failed.",
    503: "The server has not begun or is ending; Retry-After says when to come back.",
    504: "The reply took too long.",
}


def document(model_names: Sequence[str], *, has_keys: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        model_names: what clients may ask for; the first stands in the examples.
        has_keys: an API key is needed.
    """
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REFERENCE)
    for request in (ChatRequest, CompletionRequest):
        schemas["$defs"][request.__name__]["properties"]["model"]["enum"] = list(model_names)
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastvlm",
            "version": __version__,
            "description": "FastVLM behind the API that OpenAI's clients speak.",
        },
        "paths": _paths(model_names[0], has_keys=has_keys),
        "components": {"schemas": schemas["$defs"]},
    }
    if has_keys:
        content["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return content


def _paths(model_name: str, *, has_keys: bool) -> dict[str, Any]:
    question = {"role": "user", "content": "What can you do?"}
    chat = {"model": model_name, "messages": [question], "max_tokens": 8}
    security: dict[str, Any] = {"security": [{"key": []}]} if has_keys else {}
    model_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "/v1/chat/completions": {
            "post": {**_asking("Answer a chat with images", ChatRequest, ChatCompletion, chat), **security}
        },
        "/v1/completions": {
            "post": {
                **_asking(
                    "Continue a text",
                    CompletionRequest,
                    Completion,
                    {"model": model_name, "prompt": "A", "max_tokens": 8},
                ),
                **security,
            }
        },
        "/v1/models": {"get": {**_getting("List the models", ModelList, (401, 403, 503)), **security}},
        "/v1/models/{model}": {
            "get": {
                **_getting("One model", Model, (401, 403, 404, 503)),
                "parameters": [{**model_path, "example": model_name}],
                **security,
            }
        },
        "/health": {"get": _getting("200 while the process works", State, (403, 503))},
        "/ready": {
            "get": _getting("200 while requests are answered; 503 with the state otherwise", State, (403,), 503)
        },
        "/metrics": {"get": {**_text("Figures for Prometheus", "text/plain"), **security}},
    }


def _asking(summary: str, request: type[BaseModel], reply: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    replies = {
        "application/json": {"schema": _reference(reply)},
        # No type: readers of OpenAPI 3.1 take it for the whole text, newer ones for a single event.
        "text/event-stream": {"schema": {"description": "With stream: data: {...} lines, [DONE]."}},
    }
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _reference(request), "example": example}},
        },
        "responses": {"200": {"description": "The reply.", "content": replies}, **_errors(_ERRORS)},
    }


def _getting(
    summary: str, reply: type[BaseModel], errors: tuple[int, ...], other_status: int | None = None
) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(reply)}}
    other = (
        {} if other_status is None else {str(other_status): {"description": "Not yet, or no more.", "content": content}}
    )
    return {
        "summary": summary,
        "responses": {"200": {"description": "As asked.", "content": content}, **_errors(errors), **other},
    }


def _text(summary: str, media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "Text.", "content": content}, **_errors((401, 403))},
    }


def _errors(statuses: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(ErrorReply)}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def docs_page(content: dict[str, Any]) -> str:
    """The document for people: HTML without scripts, so that nothing is loaded from elsewhere."""
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
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}<td>{escape(_kind(field))}"
        f"<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field<th>kind<th>notes{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    """``string | null``, ``Message[]``."""
    if "anyOf" in field or "oneOf" in field:
        return " | ".join(_kind(option) for option in field.get("anyOf") or field["oneOf"])
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if field.get("type") == "array":
        return f"{_kind(field.get('items', {}))}[]"
    return str(field.get("type") or field.get("const") or "any")


DOCS_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }
code { font-family: ui-monospace, monospace }
"""
