"""Turns at a limited resource, shared fairly between clients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairTurns:
    """Grants at most `limit` turns at a time. Waiting clients are served in rotation, each client in its own order.

    Not thread-safe: used from one event loop.
    """

    def __init__(self, limit: int) -> None:
        self._num_free = limit  # above 0 only while nobody waits
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn of `client`, and hold it. A task that is cancelled while it waits leaves the queue."""
        if self._num_free > 0:
            self._num_free -= 1
        else:
            granted = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(granted)
            try:
                await granted
            except asyncio.CancelledError:
                if not granted.cancelled():  # it was granted in the same moment
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            client, queue = self._waiting.popitem(last=False)
            granted = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the other clients
            if not granted.done():
                granted.set_result(None)
                return
        self._num_free += 1
