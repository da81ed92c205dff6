"""A request's body: received within limits, parsed, checked; every mistake with its place in the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from fastvlm.server.api_errors import ApiError, invalid
from fastvlm.server.attended import HangUp

__all__ = ["parse", "read_body"]

Asked = TypeVar("Asked", bound=BaseModel)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: no JSON by its header (415), or more than `max_bytes` (413).
        HangUp: the client went away.
    """
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    announced = headers.get("content-length", "")
    body = bytearray()
    is_over = is_too_large = announced.isdecimal() and int(announced) > max_bytes
    while not is_over:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HangUp
        body += message.get("body", b"")
        is_too_large = len(body) > max_bytes
        is_over = is_too_large or not message.get("more_body", False)
    if is_too_large:
        raise ApiError(
            413,
            f"The request's body is larger than {max_bytes} bytes, which is the limit. Send smaller or fewer pictures.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
    if media_type != "application/json":
        raise ApiError(
            415, "Expected a JSON body with the header Content-Type: application/json.", code="unsupported_media_type"
        )
    return bytes(body)


def parse(body: bytes, schema: type[Asked]) -> Asked:
    """`body` as `schema` has it.

    Raises:
        ApiError: no JSON, or not of that schema; names the first mistake's place, and no other part of the body.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error, body) from None  # pydantic's text has the body in it


def _explained(error: ValidationError, body: bytes) -> ApiError:
    mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the branches of a union the one that got furthest was meant.
    mistake = max(mistakes, key=lambda one: len(one["loc"]))
    if mistake["type"] == "json_invalid":
        return invalid(
            f"The body is no valid JSON: {mistake['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    place = _place(mistake["loc"], from_json(body))
    if mistake["type"] == "extra_forbidden":
        return invalid(f"{place} is not known here. Remove it.", param=place, code="unknown_parameter")
    if mistake["type"] == "missing":
        return invalid(f"{place} is missing.", param=place, code="missing_required_parameter")
    return invalid(f"{place or 'The body'} is not as expected: {mistake['msg']}.", param=place or None)


def _place(location: tuple[int | str, ...], body: Any) -> str:
    """``messages[0].content[1].type`` from pydantic's location, in which names of union branches stand too."""
    place, here = "", body
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(here, list) and isinstance(part, int):
            place, here = f"{place}[{part}]", here[part]
        elif isinstance(here, Mapping) and isinstance(part, str) and (part in here or is_last):
            place, here = f"{place}.{part}" if place else part, here.get(part)
    return place
