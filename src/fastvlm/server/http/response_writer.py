"""Writes a response: one JSON document, or a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Send

from fastvlm.server.http.errors import ApiError


class ResponseWriter:
    """Sends one response. `has_begun` says whether an error can still become an HTTP status.

    `start_s` is the arrival of the request, by :func:`time.perf_counter`.

    Args:
        send: the request's; waits while the client reads slowly.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._failure: Callable[[ApiError], bytes] | None = None
        self.has_begun, self.start_s = False, time.perf_counter()

    async def json(self, data: bytes) -> None:
        """Send the whole response."""
        await self._begin(content_type="application/json")
        await self.end(data)

    async def stream(self, data: bytes, media_type: str, failure: Callable[[ApiError], bytes]) -> None:
        """Send a piece of a stream; `failure` formats an error that ends it."""
        if not self.has_begun:
            self._failure = failure
            await self._begin(content_type=media_type, cache_control="no-cache", x_accel_buffering="no")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last piece."""
        await self._send({"type": "http.response.body", "body": data})

    async def fail(self, error: ApiError) -> None:
        """End a stream with the error."""
        if self._failure is not None:
            await self.end(self._failure(error))

    async def _begin(self, **headers: str) -> None:
        self.has_begun = True
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": pairs})


def named_event(name: str, content: Mapping[str, Any]) -> bytes:
    """A server-sent event whose data repeats its name as `type`, as OpenAI's responses and Anthropic's API have it."""
    return f"event: {name}\ndata: ".encode() + json_bytes({"type": name, **content}) + b"\n\n"


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON; raises ValueError for NaN and infinity."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
