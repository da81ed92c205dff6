"""The ASGI endpoint of generation requests: receives the body, enforces limits, answers errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastvlm.server.generation import ReadRequest, answer
from fastvlm.server.http.body import announced_bytes, read_body
from fastvlm.server.http.connections import client_key
from fastvlm.server.http.disconnect import ClientDisconnected, run_while_connected
from fastvlm.server.http.errors import ApiError, as_api_error, error_response, not_ready
from fastvlm.server.http.response_writer import ResponseWriter
from fastvlm.server.service import Service

_SMALL_BODY_BYTES = 2**16  # one per connection takes little memory


class GenerationEndpoint:
    """Answers requests that `read` reads; every failure becomes an error response or the end of a stream."""

    def __init__(self, service: Service, read: ReadRequest) -> None:
        self._service, self._read = service, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, writer = self._service, ResponseWriter(send)
        try:
            await self._run(scope, receive, writer)
            return
        except ClientDisconnected:
            service.metrics.hang_ups.inc()
            return
        except Exception as raised:  # noqa: BLE001 - every failure is answered
            is_stopping = service.status == "stopping" and not isinstance(raised, ApiError)
            error = not_ready("The server is stopping.") if is_stopping else as_api_error(raised)
        service.metrics.errors.labels(error.code).inc()
        if writer.has_begun:
            await writer.fail(error)
        else:
            await error_response(error, scope["path"])(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, writer: ResponseWriter) -> None:
        service, settings = self._service, self._service.settings
        if service.context is None or not service.is_ready:
            raise not_ready(f"The server is {service.status}. Try again later.")
        client = client_key((scope.get("client") or (None,))[0])
        is_small = announced_bytes(scope) <= _SMALL_BODY_BYTES
        with nullcontext() if is_small else service.upload_slots.acquire(client):
            body = await read_body(scope, receive, settings)
        work = answer(service.context, self._read, body, writer, client)
        del body  # `answer` drops it too, once it is parsed
        await run_while_connected(work, receive, settings.request_timeout_s, writer.start_s)


class QueryEndpoint:
    """Answers small POST requests that need no engine: `answer` makes the response of a body in the event loop."""

    def __init__(self, service: Service, answer: Callable[[Service, bytes], Response]) -> None:
        self._service, self._answer = service, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        settings = replace(self._service.settings, max_body_bytes=_SMALL_BODY_BYTES)
        try:
            response = self._answer(self._service, await read_body(scope, receive, settings))
        except ClientDisconnected:
            return
        except Exception as raised:  # noqa: BLE001 - every failure is answered
            response = error_response(as_api_error(raised), scope["path"])
        await response(scope, receive, send)
