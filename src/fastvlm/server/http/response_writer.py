"""The way out: one JSON reply, or server-sent events (WHATWG HTML, section 9.2; OpenAI ends them with `[DONE]`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Send

from fastvlm.server.http.errors import ApiError, error_body

__all__ = ["ResponseWriter"]


class ResponseWriter:
    """Sends one reply; knows whether it has begun, so that an error can still become a status or only an event.

    Args:
        send: the request's; waits while the client reads slowly.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self._is_stream = False

    async def json(self, content: Mapping[str, Any]) -> None:
        """The whole reply; a content that is no JSON is found before the status is sent."""
        data = await asyncio.to_thread(_dumps, content)  # log probabilities of many choices are megabytes
        await self._begin("application/json")
        await self._write(data, is_last=True)

    async def event(self, content: Mapping[str, Any]) -> None:
        """One event of a stream."""
        data = b"data: " + _dumps(content) + b"\n\n"
        if not self.has_begun:
            self._is_stream = True
            await self._begin("text/event-stream", (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        await self._write(data)

    async def done(self) -> None:
        """The end of a stream."""
        await self._write(b"data: [DONE]\n\n", is_last=True)

    async def fail(self, error: ApiError) -> None:
        """The end of a stream that failed: an event with the error, and no `[DONE]`."""
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
