"""Runs the work for a request until the client disconnects or a time limit passes; then cancels it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

from starlette.types import Receive

from fastvlm.server.http.errors import ApiError


class ClientDisconnected(Exception):  # noqa: N818 - not an error of the server
    """The client closed the connection."""


async def run_while_connected(
    work: Coroutine[None, None, None], receive: Receive, limit_s: float, start_s: float
) -> None:
    """Run `work` while the client is connected.

    Args:
        work: its exceptions are passed on; if it is cancelled, its clean-up is awaited.
        receive: the request's, after its body was read.
        limit_s: seconds that the request may take, from `start_s` on, by :func:`time.perf_counter`.

    Raises:
        ClientDisconnected: the work was cancelled.
        ApiError: 504, the work was cancelled because of the limit.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
    left_s = max(0.0, start_s + limit_s - time.perf_counter())
    try:
        await asyncio.wait({task, disconnect}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if disconnect.done():
            raise ClientDisconnected
        message = f"The reply took longer than {limit_s:g} s, which is the limit (request_timeout_s). Ask for less."
        # Without the header OpenAI's clients retry by themselves, and a second try would take as long.
        raise ApiError(504, message, code="timeout", headers={"x-should-retry": "false"})
    finally:
        for one in (task, disconnect):
            one.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
