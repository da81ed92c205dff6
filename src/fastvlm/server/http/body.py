"""A request's body: received within limits, parsed, checked; every mistake with its place in the request."""

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

__all__ = ["parse", "read_body"]

Asked = TypeVar("Asked", bound=BaseModel)
MAX_VALUES = 32_768  # of a body; validating them takes 0.1 s


@dataclass(frozen=True)
class UploadDeadline:
    """How fast a body must come.

    Args:
        rate: bytes a second, at least, counted after the first `grace_s` seconds.
        grace_s, limit_s: seconds; the whole body must be there after `limit_s`.
    """

    rate: int
    grace_s: float
    limit_s: float

    def time_for(self, num_bytes: int) -> float:
        """Seconds after the beginning at which more than `num_bytes` must have come."""
        return min(self.limit_s, self.grace_s + num_bytes / self.rate)


def announced_bytes(scope: Scope) -> float:
    """What the header says about the body's length; infinity if it says nothing."""
    announced = Headers(scope=scope).get("content-length", "")
    return int(announced) if announced.isdecimal() and len(announced) < 20 else math.inf


async def read_body(scope: Scope, receive: Receive, max_bytes: int, pace: UploadDeadline) -> bytes:
    """The body of a request.

    Raises:
        ApiError: no JSON by its header (415), more than `max_bytes` (413), or slower than `pace` (408).
        ClientDisconnected: the client went away.
    """
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    body, begun_s = bytearray(), time.monotonic()
    is_over = is_too_large = max_bytes < announced_bytes(scope) < math.inf
    while not is_over:
        left_s = begun_s + pace.time_for(len(body)) - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left_s))
        except asyncio.TimeoutError:
            raise _too_slow(pace) from None
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


def _too_slow(pace: UploadDeadline) -> ApiError:
    return ApiError(
        408,
        f"The body did not arrive within {pace.limit_s:g} s, or came at less than {pace.rate} bytes a second.",
        code="request_timeout",
        headers={"Connection": "close"},
    )


def parse(body: bytes, schema: type[Asked]) -> Asked:
    """`body` as `schema` has it. Takes up to 0.2 s: not for the event loop's thread.

    Raises:
        ApiError: no JSON, too many values, or not of that schema; names the first mistake's place, and no other part
            of the body.
    """
    num_values = sum(body.count(mark) for mark in (b",", b"[", b"{"))  # there is one of them before each value
    if num_values > MAX_VALUES:
        raise invalid(
            f"The body has {num_values} commas and opening brackets; the limit is {MAX_VALUES}. Send fewer messages, "
            "parts or keys.",
            code="body_too_complex",
        )
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
    location = mistake["loc"]
    place, is_branch = _place(location, from_json(body), is_missing=mistake["type"] == "missing")
    place = _shortened(place, 200)
    if mistake["type"] == "extra_forbidden":
        return invalid(f"{place} is not known here. Remove it.", param=place, code="unknown_parameter")
    if mistake["type"] == "missing":
        return invalid(f"{place} is missing.", param=place, code="missing_required_parameter")
    same = [one["msg"] for one in mistakes if one["loc"][:-1] == location[:-1]] if is_branch else [mistake["msg"]]
    message = " Or: ".join(f"{_shortened(text, 300)}." for text in same)
    return invalid(f"{place or 'The body'} is not as expected: {message}", param=place or None)


def _shortened(text: str, limit: int) -> str:
    """`text` with at most `limit` characters: keys and tags of the body stand in it, which may be megabytes."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _place(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> tuple[str, bool]:
    """``messages[0].content[1].type`` from pydantic's location, and whether a union's branch stands at its end.

    A branch may have the name of a key (`text` is both), so all readings are tried; the one that understands the last
    element as a key, and then the most of the others, is right.
    """
    is_whole, _, steps = max(_readings(location, body, is_missing=is_missing), key=lambda reading: reading[:2])
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return place.removeprefix("."), not is_whole


def _readings(
    location: tuple[int | str, ...], here: Any, *, is_missing: bool
) -> Iterator[tuple[bool, int, list[int | str]]]:
    """Ways to read `location` from `here` on: (whether its last element is one of the steps, their number, steps)."""
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
