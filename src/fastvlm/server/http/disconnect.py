"""Work for a client that may hang up, within a time limit: it is cancelled as soon as nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from starlette.types import Receive

__all__ = ["ClientDisconnected", "RequestTimedOut", "run_while_connected"]


class ClientDisconnected(Exception):  # noqa: N818 - nothing went wrong here
    """The client went away."""


class RequestTimedOut(Exception):  # noqa: N818 - told to the client as an error of its own
    """The request took longer than it may."""


async def run_while_connected(work: Coroutine[None, None, None], receive: Receive, limit_s: float) -> None:
    """Do `work` while the client listens.

    Args:
        work: raises what it likes; cancelled, it has a chance to clean up, which is waited for.
        receive: the request's, its body read.
        limit_s: seconds that it may take.

    Raises:
        ClientDisconnected, RequestTimedOut: the work has been cancelled.
    """
    task = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, listening}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected if listening.done() else RequestTimedOut
    finally:
        for one in (task, listening):
            one.cancel()
        await asyncio.gather(task, listening, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
