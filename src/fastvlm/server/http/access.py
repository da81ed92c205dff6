"""Access control before all routes (API key, Host, Origin); security headers, metrics and the access log after them.

Browsers let any page send requests to this machine. So without API keys the Host header must name this machine, which
stops DNS rebinding, and requests from other pages (Origin) are refused unless `cors_origins` allows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastvlm.server.http.errors import ApiError, error_response
from fastvlm.server.metrics import Metrics
from fastvlm.server.settings import ServeSettings, is_loopback

access_logger = logging.getLogger("fastvlm.server.access")

# The page loads nothing from elsewhere and may not be framed.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_DRAIN_S = 10.0  # 20 MiB arrive in this time even on a busy machine
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def needs_key(path: str) -> bool:
    """True for paths that need an API key, if the server has any."""
    return path.startswith(("/v1/", "/api/")) or path == "/metrics"


class AccessMiddleware:
    """ASGI middleware around all routes.

    Args:
        app: the routes.
        settings, metrics: the server's.
        labels: paths with metrics of their own; all others count as "other".
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, labels: Collection[str]) -> None:
        self._app, self._settings, self._metrics, self._labels = app, settings, metrics, labels
        self._key_digests = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, request_id, status = time.perf_counter(), uuid.uuid4().hex, 0
        incoming = _DrainableBody(receive)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and status != 408:  # after 408 the rest of the body would not come either
                    await incoming.drain()
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    if name not in headers:
                        headers[name] = value
            await send(message)

        try:
            refusal = self._refusal(scope)
            answer = self._app if refusal is None else error_response(refusal, scope["path"])
            await answer(scope, incoming.receive, send_with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - start_s, request_id)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """The error for a request that is not allowed, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        if not self._key_digests and not self._is_own_host(headers.get("host", "")):
            message = "The Host header names another machine. Without API keys this server answers only to localhost."
            return ApiError(403, message, code="host_not_allowed")
        if scope["method"] not in _SAFE_METHODS and not self._is_allowed_origin(headers):
            message = "The request comes from another page. Allow its origin with --cors-origin."
            return ApiError(403, message, code="origin_not_allowed")
        if self._key_digests and needs_key(path) and not self._has_key(headers):
            message = "Expected a valid API key, as Authorization: Bearer <key> or x-api-key: <key>."
            return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _is_own_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name == self._settings.host.lower()

    def _is_allowed_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or "*" in self._settings.cors_origins or origin in self._settings.cors_origins:
            return True
        return origin.partition("://")[2] == headers.get("host", "") != ""

    def _has_key(self, headers: Headers) -> bool:
        """Compare with all keys, each in constant time; Anthropic's clients send theirs as x-api-key."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        matches = [hmac.compare_digest(given, digest) for digest in self._key_digests]
        return any(matches)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"]
        route = path if path in self._labels else "other"  # clients must not create labels
        self._metrics.requests.labels(route, str(status) if status else "hang-up").inc()
        self._metrics.durations.labels(route).observe(seconds)
        if self._settings.access_log:
            client = (scope.get("client") or ("-",))[0]
            line = f"{client} {scope['method']} {path!r} {status or 'hang-up'} {1000 * seconds:.0f} ms {request_id}"
            access_logger.info(line)


class _DrainableBody:
    """A request's `receive`, which knows whether the body has been read to the end."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._is_over = receive, False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        self._is_over = self._is_over or not message.get("more_body", False)  # a disconnect has none
        return message

    async def drain(self) -> None:
        """Read the rest of the body: a client that is still sending would see a reset connection, not the error."""

        async def read_rest() -> None:
            while not self._is_over:
                await self.receive()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read_rest(), _DRAIN_S)


def _digest(key: str) -> bytes:
    """SHA-256 of a key: of equal length for all keys, so that the time to compare says nothing about a key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
