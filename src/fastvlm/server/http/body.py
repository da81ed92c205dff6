"""Request bodies: received within limits, parsed, validated; errors name the wrong field."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from fastvlm.server.http.disconnect import ClientDisconnected
from fastvlm.server.http.errors import ApiError, invalid

Schema = TypeVar("Schema", bound=BaseModel)
MAX_VALUES = 32_768  # in one body; validating them takes 0.1 s


@dataclass(frozen=True)
class UploadDeadline:
    """The deadline of an upload, which moves as bytes arrive.

    Args:
        rate: lowest rate in bytes per second, counted after the first `grace_s` seconds.
        grace_s, limit_s: seconds; the whole body must have arrived after `limit_s`.
    """

    rate: int
    grace_s: float
    limit_s: float

    def time_for(self, num_bytes: int) -> float:
        """Seconds from the beginning until more than `num_bytes` must have arrived."""
        return min(self.limit_s, self.grace_s + num_bytes / self.rate)


def announced_bytes(scope: Scope) -> float:
    """The body's length by the header Content-Length; infinity without a valid one."""
    announced = Headers(scope=scope).get("content-length", "")
    return int(announced) if announced.isdecimal() and len(announced) < 20 else math.inf


async def read_body(scope: Scope, receive: Receive, max_bytes: int, deadline: UploadDeadline) -> bytes:
    """The body of a request.

    Raises:
        ApiError: Content-Type is not JSON (415), more than `max_bytes` (413), or later than `deadline` (408).
        ClientDisconnected: the client closed the connection.
    """
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    body, start_s = bytearray(), time.monotonic()
    is_over = is_too_large = max_bytes < announced_bytes(scope) < math.inf
    while not is_over:
        left_s = start_s + deadline.time_for(len(body)) - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left_s))
        except asyncio.TimeoutError:
            raise _too_slow(deadline) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        is_too_large = len(body) > max_bytes
        is_over = is_too_large or not message.get("more_body", False)
    if is_too_large:
        raise ApiError(
            413,
            f"The request's body is larger than {max_bytes} bytes, which is the limit. Send smaller or fewer images.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
    if media_type != "application/json":
        raise ApiError(
            415, "Expected a JSON body with the header Content-Type: application/json.", code="unsupported_media_type"
        )
    return bytes(body)


def _too_slow(deadline: UploadDeadline) -> ApiError:
    return ApiError(
        408,
        f"The body took longer than {deadline.limit_s:g} s, or arrived at less than {deadline.rate} bytes per second.",
        code="request_timeout",
        headers={"Connection": "close"},
    )


def parse(body: bytes, schema: type[Schema]) -> Schema:
    """`body` as an object of `schema`. Takes up to 0.2 s: not for the event loop's thread.

    Raises:
        ApiError: invalid JSON, too many values, or not of that schema; names the first wrong field, and no other part
            of the body.
    """
    num_values = sum(body.count(mark) for mark in (b",", b"[", b"{"))  # one of them stands before each value
    if num_values > MAX_VALUES:
        raise invalid(
            f"The body has {num_values} commas and opening brackets; the limit is {MAX_VALUES}. Send fewer messages, "
            "parts or keys.",
            code="body_too_complex",
        )
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _api_error(error, body) from None  # pydantic's text has the body in it


def _api_error(error: ValidationError, body: bytes) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # pydantic reports every branch of a union; the deepest location is the branch that was meant.
    detail = max(details, key=lambda one: len(one["loc"]))
    if detail["type"] == "json_invalid":
        return invalid(
            f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    location = detail["loc"]
    path, is_branch = _path(location, from_json(body), is_missing=detail["type"] == "missing")
    path = _shortened(path, 200)
    if detail["type"] == "extra_forbidden":
        return invalid(f"{path} is not a known parameter. Remove it.", param=path, code="unknown_parameter")
    if detail["type"] == "missing":
        return invalid(f"{path} is missing.", param=path, code="missing_required_parameter")
    same = [one["msg"] for one in details if one["loc"][:-1] == location[:-1]] if is_branch else [detail["msg"]]
    message = " Or: ".join(f"{_shortened(text, 300)}." for text in same)
    return invalid(f"{path or 'The body'} is invalid: {message}", param=path or None)


def _shortened(text: str, limit: int) -> str:
    """`text` cut to `limit` characters: it contains keys and tags of the body, which may be megabytes."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _path(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> tuple[str, bool]:
    """pydantic's location as a path, ``messages[0].content[1].type``, and whether it ends with a union's branch.

    A branch may have the name of a key (`text` is both), so all readings are tried; the right one takes the last
    element for a key, and then as many of the others as possible.
    """
    is_whole, _, steps = max(_readings(location, body, is_missing=is_missing), key=lambda reading: reading[:2])
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix("."), not is_whole


def _readings(
    location: tuple[int | str, ...], here: Any, *, is_missing: bool
) -> Iterator[tuple[bool, int, list[int | str]]]:
    """Readings of `location` from `here` on: (whether its last element is one of the steps, number of steps, steps)."""
    if not location:
        yield True, 0, []
        return
    first, rest = location[0], location[1:]
    if isinstance(first, int):
        after = [here[first]] if isinstance(here, list) and first < len(here) else []
    else:
        is_key = isinstance(here, Mapping) and (first in here) != (is_missing and not rest)
        after = [here.get(first)] if is_key else []
        for is_whole, count, steps in _readings(rest, here, is_missing=is_missing):  # the name of a branch
            yield is_whole and bool(rest), count, steps
    for one in after:
        for is_whole, count, steps in _readings(rest, one, is_missing=is_missing):
            yield is_whole, count + 1, [first, *steps]
