"""The ASGI endpoint of requests that the engine answers: receives the body, enforces limits, maps errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext

from starlette.types import Receive, Scope, Send

from fastvlm.server.context import Exchange, ServerContext
from fastvlm.server.http.body import UploadDeadline, announced_bytes, read_body
from fastvlm.server.http.connections import client_key
from fastvlm.server.http.disconnect import ClientDisconnected, RequestTimedOut, run_while_connected
from fastvlm.server.http.errors import ApiError, as_api_error, error_response, not_ready
from fastvlm.server.http.response_writer import ResponseWriter
from fastvlm.server.service import Service

Handler = Callable[[ServerContext, bytes, Exchange], Coroutine[None, None, None]]
_SMALL_BODY_BYTES = 2**16  # one per connection takes little memory


class EngineEndpoint:
    """Runs `handler` for each request, and turns every failure into an error response or an error event."""

    def __init__(self, service: Service, handler: Handler) -> None:
        self._service, self._handler = service, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, writer = self._service, ResponseWriter(send)
        try:
            await self._run(scope, receive, writer)
            return
        except ClientDisconnected:
            service.metrics.hang_ups.inc()
            return
        except RequestTimedOut:
            error = _timed_out(service.settings.request_timeout_s)
        except Exception as raised:  # noqa: BLE001 - every failure is answered
            is_stopping = service.status == "stopping" and not isinstance(raised, ApiError)
            error = not_ready("The server is stopping.") if is_stopping else as_api_error(raised)
        service.metrics.errors.labels(error.code).inc()
        if writer.has_begun:
            await writer.fail(error)
        else:
            await error_response(error)(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, writer: ResponseWriter) -> None:
        service, start_s = self._service, time.perf_counter()
        limit_s = service.settings.request_timeout_s
        if service.context is None or not service.is_ready:
            raise not_ready(f"The server is {service.status}. Try again later.")
        client = client_key((scope.get("client") or (None,))[0])
        body = await self._read_body(scope, receive, client)
        left_s = max(0.0, limit_s - (time.perf_counter() - start_s))
        work = self._handler(service.context, body, Exchange(writer, start_s, client))
        del body  # the handler drops it too, once it is parsed
        await run_while_connected(work, receive, left_s)

    async def _read_body(self, scope: Scope, receive: Receive, client: str) -> bytes:
        settings = self._service.settings
        is_small = announced_bytes(scope) <= _SMALL_BODY_BYTES
        deadline = UploadDeadline(settings.min_body_rate, settings.header_timeout_s, settings.request_timeout_s)
        with nullcontext() if is_small else self._service.upload_slots.acquire(client):
            return await read_body(scope, receive, settings.max_body_bytes, deadline)


def _timed_out(limit_s: float) -> ApiError:
    # Without the header OpenAI's clients retry by themselves, and a second try would take as long.
    message = f"The reply took longer than {limit_s:g} s, which is the limit. Ask for fewer tokens or images."
    return ApiError(504, message, code="timeout", kind="server_error", headers={"x-should-retry": "false"})
