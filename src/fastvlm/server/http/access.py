"""Before any route: may this request come in? And after it: headers, counts and a line in the log.

Browsers let any page send requests to this machine. So the name in Host must be this machine's where no keys are
needed (a page whose own name is pointed here by DNS has another), and requests from other pages (Origin) are refused
unless those pages are allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastvlm.server.http.errors import ApiError, error_response
from fastvlm.server.metrics import Metrics
from fastvlm.server.settings import ServeSettings, is_loopback

__all__ = ["AccessMiddleware"]

access_logger = logging.getLogger("fastvlm.server.access")

# The page loads nothing from elsewhere, and nobody may frame it.
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
_DRAIN_S = 10.0  # 20 MiB arrive in that time also while the machine is busy
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics", "/docs", "/")


class AccessMiddleware:
    """ASGI middleware around all routes.

    Args:
        app: the routes.
        settings, metrics: the server's.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key_digests = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, request_id, status = time.perf_counter(), uuid.uuid4().hex, 0
        incoming = _Incoming(receive)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:
                    await incoming.drain()
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    if name not in headers:
                        headers[name] = value
            await send(message)

        try:
            refusal = self._refusal(scope)
            answer = self._app if refusal is None else error_response(refusal)
            await answer(scope, incoming.receive, send_with_headers)
        finally:
            self._note(scope, status, time.perf_counter() - start_s, request_id)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why the request may not come in, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        if not self._key_digests and not self._is_own_name(headers.get("host", "")):
            return ApiError(
                403,
                "The Host header names another machine. Without API keys this server answers to localhost only.",
                code="host_not_allowed",
                kind="permission_error",
            )
        if scope["method"] not in _SAFE_METHODS and not self._is_own_page(headers):
            return ApiError(
                403,
                "The request comes from another page. Allow its origin with --cors-origin.",
                code="origin_not_allowed",
                kind="permission_error",
            )
        if self._key_digests and (path.startswith("/v1/") or path == "/metrics") and not self._has_key(headers):
            return ApiError(
                401,
                "Expected an API key that this server knows, as Authorization: Bearer <key>.",
                code="invalid_api_key",
                kind="authentication_error",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name == self._settings.host.lower()

    def _is_own_page(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or "*" in self._settings.cors_origins or origin in self._settings.cors_origins:
            return True
        return origin.partition("://")[2] == headers.get("host", "") != ""

    def _has_key(self, headers: Headers) -> bool:
        """Compares all keys, each in a time that does not depend on what was sent."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        matches = [hmac.compare_digest(given, digest) for digest in self._key_digests]
        return any(matches)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"]
        route = path if path in _ROUTES else "other"  # what a client makes up does not become a label
        self._metrics.requests.labels(route, str(status) if status else "hang-up").inc()
        self._metrics.durations.labels(route).observe(seconds)
        if self._settings.access_log:
            client = (scope.get("client") or ("-",))[0]
            line = f"{client} {scope['method']} {path!r} {status or 'hang-up'} {1000 * seconds:.0f} ms {request_id}"
            access_logger.info(line)


class _Incoming:
    """A request's messages; knows whether its body has been read to the end."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._is_over = receive, False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        self._is_over = self._is_over or not message.get("more_body", False)  # a disconnect has none
        return message

    async def drain(self) -> None:
        """Read on for a moment: a client that is still sending would see a reset connection instead of the refusal."""

        async def to_the_end() -> None:
            while not self._is_over:
                await self.receive()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(to_the_end(), _DRAIN_S)


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that comparing tells nothing of theirs."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
