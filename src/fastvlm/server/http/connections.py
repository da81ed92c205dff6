"""Limits of connections: their number, the time for a header, and the time to read a response.

uvicorn limits only requests, so a client that sends half a header, or never reads, would hold a connection forever.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from fastvlm.server.http.errors import ApiError, busy, error_body
from fastvlm.server.settings import ServeSettings

# Bytes per read. A chunked body of one byte per chunk is parsed at 20 microseconds per chunk, while other connections
# wait: asyncio's default of 256 KiB would block them for half a second.
_READ_BYTES = 2**14


def client_key(host: str | None) -> str:
    """The identity of a client: an IPv4 address, or the /64 network of an IPv6 address; empty without an address."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(getattr(address, "ipv4_mapped", None) or address)


class LimitedConnection(H11Protocol):
    """uvicorn's connection with a deadline for headers, a limit per client, and a deadline for reading responses."""

    settings: ClassVar[ServeSettings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._key = ""
        self._header_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Accept the connection, or refuse it with 503."""
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # asyncio's selector transports have it
        limit = self.settings.max_connections
        self._key = client_key(self.client[0] if self.client else None)
        own = sum(isinstance(one, LimitedConnection) and one._key == self._key for one in self.connections)
        if len(self.connections) > limit or own > share(limit):
            message = f"Too many connections (max_connections is {limit}, half of it for one client). Try again later."
            self._refuse(ApiError(503, message, code="too_many_connections"))
        else:
            self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Receive a part of a header or a body."""
        super().data_received(data)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._header_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly: close the connection after `request_timeout_s`."""
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.settings.request_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read: stop the timer."""
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _watch_header(self) -> None:
        """Run the timer from the moment a header is expected until it is complete."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        elif is_waiting and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._header_timed_out)

    def _header_timed_out(self) -> None:
        message = f"The request's header did not arrive within {self.settings.header_timeout_s:g} s."
        self._refuse(ApiError(408, message, code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Send an error without a request, and close."""
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(error))
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", body]).encode())
        self.transport.close()


def limited_connections(settings: ServeSettings) -> type[H11Protocol]:
    """The protocol class for uvicorn."""
    return type("Connection", (LimitedConnection,), {"settings": settings})


def share(limit: int) -> int:
    """One client's part of `limit`: half of it."""
    return max(1, limit // 2)


class UploadSlots:
    """Limits how many large bodies are received at the same time, and so the memory for them.

    Args:
        limit: number of bodies; half of it for one client.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: list[str] = []

    @contextmanager
    def acquire(self, client: str) -> Iterator[None]:
        """Hold one slot for a body from `client`.

        Raises:
            ApiError: 429, all are taken.
        """
        if len(self._clients) >= self._limit or self._clients.count(client) >= share(self._limit):
            raise busy(
                f"Too many large requests are being received (max_receiving is {self._limit}, half of it for one "
                "client). Try again later."
            )
        self._clients.append(client)
        try:
            yield
        finally:
            self._clients.remove(client)
