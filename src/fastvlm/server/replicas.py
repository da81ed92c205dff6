"""The engines of one process: how many requests are let in, and who answers which."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastvlm.engine.async_engine import AsyncEngine
from fastvlm.engine.engine import Engine
from fastvlm.images.pool import ImagePool
from fastvlm.server.http.errors import busy

__all__ = ["Replica", "Replicas"]

_REMEMBERED = 4096  # conversations whose replica is known; a few hundred KB


class Replica:
    """An engine behind its door, and the replies that it owes."""

    def __init__(self, engine: Engine, image_pool: ImagePool | None = None) -> None:
        self.engine, self.async_engine = engine, AsyncEngine(engine, image_pool=image_pool)
        self.num_pending = 0

    @property
    def capacity(self) -> int:
        """Replies that may run or wait."""
        return self.engine.num_slots + self.engine.max_waiting


class Replicas:
    """All engines.

    Args:
        engines: of the same model.
        image_pool: decodes their images; None to do it in this process.
    """

    def __init__(self, engines: Sequence[Engine], image_pool: ImagePool | None = None) -> None:
        self.all = [Replica(engine, image_pool) for engine in engines]
        self._served: OrderedDict[str, Replica] = OrderedDict()

    async def open(self) -> None:
        """Begin to take requests."""
        for replica in self.all:
            await replica.async_engine.__aenter__()

    async def close(self) -> None:
        """End all requests; their listeners get a UsageError."""
        for replica in self.all:
            await replica.async_engine.close()

    @property
    def num_pending(self) -> int:
        """Replies that were promised and have not ended."""
        return sum(replica.num_pending for replica in self.all)

    @contextmanager
    def claim(self, count: int, conversation: str) -> Iterator[Replica]:
        """A replica with room for `count` replies: the one that knows the conversation, or the least busy one.

        Raises:
            ApiError: 429, all are full.
        """
        replica = self._choose(count, conversation)
        self._served[conversation] = replica
        self._served.move_to_end(conversation)
        while len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)
        replica.num_pending += count
        try:
            yield replica
        finally:
            replica.num_pending -= count

    def _choose(self, count: int, conversation: str) -> Replica:
        known = self._served.get(conversation)
        if known is not None and known.num_pending + count <= known.engine.num_slots:
            return known  # its caches begin with this conversation, and a slot is free
        least = min(self.all, key=lambda replica: replica.num_pending)
        if least.num_pending + count > least.capacity:
            raise busy(f"{self.num_pending} replies are running or waiting, which is the limit. Try again later.")
        return least
