"""Request bodies: received within limits, parsed, validated; errors name the wrong field."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from fastvlm.server.http.disconnect import ClientDisconnected
from fastvlm.server.http.errors import ApiError, invalid
from fastvlm.server.settings import ServeSettings

Schema = TypeVar("Schema", bound=BaseModel)
logger = logging.getLogger("fastvlm.server")
_MOST_NAMES = 1000
_MOST_PASSES = 50  # a list is reported up to its first wrong element
MAX_VALUES = 32_768  # in one body; validating them takes 0.1 s


def announced_bytes(scope: Scope) -> float:
    """The body's length by the header Content-Length; infinity without a valid one."""
    announced = Headers(scope=scope).get("content-length", "")
    return int(announced) if announced.isdecimal() and len(announced) < 20 else math.inf


def upload_deadline_s(num_bytes: int, settings: ServeSettings) -> float:
    """Seconds from the beginning of an upload until more than `num_bytes` must have arrived."""
    return min(settings.request_timeout_s, settings.header_timeout_s + num_bytes / settings.min_body_rate)


async def read_body(scope: Scope, receive: Receive, settings: ServeSettings) -> bytes:
    """The body of a request.

    Raises:
        ApiError: Content-Type is not JSON (415), more than `max_body_bytes` (413), or too late (408).
        ClientDisconnected: the client closed the connection.
    """
    max_bytes = settings.max_body_bytes
    body, start_s = bytearray(), time.monotonic()
    is_over = is_too_large = max_bytes < announced_bytes(scope) < math.inf
    while not is_over:
        left_s = start_s + upload_deadline_s(len(body), settings) - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left_s))
        except asyncio.TimeoutError:
            text = (
                f"The body took longer than {settings.request_timeout_s:g} s (request_timeout_s), or arrived at less "
                f"than {settings.min_body_rate} bytes per second (min_body_rate)."
            )
            raise ApiError(408, text, code="request_timeout", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        is_too_large = len(body) > max_bytes
        is_over = is_too_large or not message.get("more_body", False)
    if is_too_large:
        text = f"The request's body is larger than {max_bytes} bytes, which is the limit (max_body_bytes)."
        raise ApiError(413, text, code="body_too_large", headers={"Connection": "close"})
    if Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        text = "Expected a JSON body with the header Content-Type: application/json."
        raise ApiError(415, text, code="unsupported_media_type")
    return bytes(body)


def parse(body: bytes, schema: type[Schema], settings: ServeSettings) -> Schema:
    """`body` as an object of `schema`. Takes up to 0.2 s: not for the event loop's thread.

    With ``settings.lenient`` unknown parameters are left out; the log names each of them once.

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
    for _ in range(_MOST_PASSES if settings.lenient else 1):
        try:
            return schema.model_validate_json(body)
        except ValidationError as error:
            wrong = error
        known = _without_unknown(wrong, body) if settings.lenient else b""
        if not known:
            break
        body = known
    raise _api_error(wrong, body) from None  # pydantic's text has the body in it


def _without_unknown(error: ValidationError, body: bytes) -> bytes:
    """`body` without the parameters that `error` calls unknown; empty if it calls none so."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    content, unknown = from_json(body) if details[0]["type"] != "json_invalid" else {}, False
    for detail in details:
        if detail["type"] != "extra_forbidden":
            continue
        keys, is_gone = _keys(detail["loc"], content)
        if not is_gone:  # two branches of a union may have named it
            *owners, name = keys
            del functools.reduce(lambda here, key: here[key], owners, content)[name]
            unknown = True
            _log_unknown(_shortened(str(name), 100))
    return to_json(content) if unknown else b""


@functools.lru_cache(_MOST_NAMES)  # each name once, and no more of them than fit
def _log_unknown(name: str) -> None:
    logger.warning("the parameter %r of a request is unknown and ignored (--lenient)", name)


def _api_error(error: ValidationError, body: bytes) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # pydantic reports every branch of a union; the deepest location is the branch that was meant.
    detail = max(details, key=lambda one: len(one["loc"]))
    if detail["type"] == "json_invalid":
        return invalid(
            f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    location = detail["loc"]
    keys, is_branch = _keys(location, from_json(body), is_missing=detail["type"] == "missing")
    path = _shortened(_path(keys), 200)
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


def _keys(location: tuple[int | str, ...], body: Any, *, is_missing: bool = False) -> tuple[list[int | str], bool]:
    """The keys and indices of pydantic's `location` in `body`, and whether it ends with a union's branch.

    Branches stand among the keys: before the keys of a part the value of its `type`, elsewhere the names of types.
    """
    keys: list[int | str] = []
    here, branch, is_key = body, None, True
    for index, step in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(step, int):
            is_key = isinstance(here, list) and step < len(here)
        else:
            is_present = isinstance(here, Mapping) and (step in here or (is_last and is_missing))
            is_key = is_present and (is_last or step != branch)
        if is_key:
            keys.append(step)
            here = here.get(step) if isinstance(here, Mapping) else here[step]
        branch = here.get("type") if is_key and isinstance(here, Mapping) else None
    return keys, not is_key


def _path(keys: Sequence[int | str]) -> str:
    """Keys as clients read them: ``messages[0].content[1].type``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
