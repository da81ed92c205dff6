"""Runs the work for a request until the client disconnects or a time limit passes; then cancels it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from starlette.types import Receive


class ClientDisconnected(Exception):  # noqa: N818 - not an error of the server
    """The client closed the connection."""


class RequestTimedOut(Exception):  # noqa: N818 - becomes an ApiError
    """The request took longer than its limit."""


async def run_while_connected(work: Coroutine[None, None, None], receive: Receive, limit_s: float) -> None:
    """Run `work` while the client is connected.

    Args:
        work: its exceptions are passed on; if it is cancelled, its clean-up is awaited.
        receive: the request's, after its body was read.
        limit_s: seconds that the work may take.

    Raises:
        ClientDisconnected, RequestTimedOut: the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected if disconnect.done() else RequestTimedOut
    finally:
        for one in (task, disconnect):
            one.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
