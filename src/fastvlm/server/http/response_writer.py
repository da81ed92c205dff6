"""Writes a response: one JSON document, or server-sent events (WHATWG HTML, section 9.2) that end with `[DONE]`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Send

from fastvlm.server.http.errors import ApiError, error_body


class ResponseWriter:
    """Sends one response. `has_begun` says whether an error can still become an HTTP status.

    Args:
        send: the request's; waits while the client reads slowly.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self._is_stream = False

    async def json(self, content: Mapping[str, Any]) -> None:
        """Send the whole response. Content that is not JSON raises before the status is sent."""
        data = await asyncio.to_thread(_dumps, content)  # log probabilities of many choices are megabytes
        await self._begin("application/json")
        await self._write(data, is_last=True)

    async def event(self, content: Mapping[str, Any]) -> None:
        """Send one event of a stream."""
        data = b"data: " + _dumps(content) + b"\n\n"
        if not self.has_begun:
            self._is_stream = True
            await self._begin("text/event-stream", (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        await self._write(data)

    async def done(self) -> None:
        """End a stream."""
        await self._write(b"data: [DONE]\n\n", is_last=True)

    async def fail(self, error: ApiError) -> None:
        """End a stream with an event that has the error, without `[DONE]`."""
        if self._is_stream:
            await self._write(b"data: " + _dumps(error_body(error)) + b"\n\n", is_last=True)

    async def _begin(self, media_type: str, *headers: tuple[bytes, bytes]) -> None:
        self.has_begun = True
        content_type = (b"content-type", media_type.encode())
        await self._send({"type": "http.response.start", "status": 200, "headers": [content_type, *headers]})

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


def _dumps(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
