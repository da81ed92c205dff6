"""The replicas of a model: admits requests, and assigns each to an engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastvlm.engine.async_engine import AsyncEngine
from fastvlm.engine.engine import Engine
from fastvlm.images.pool import ImagePool
from fastvlm.server.http.errors import busy

_MAX_CONVERSATIONS = 4096  # whose replica is remembered; a few hundred KB


class Replica:
    """An engine, and the number of its replies that are running or waiting."""

    def __init__(self, engine: Engine, image_pool: ImagePool | None = None) -> None:
        self.image_pool = image_pool
        self.engine, self.async_engine = engine, AsyncEngine(engine, image_pool=image_pool)
        self.num_pending = 0


class Replicas:
    """All engines of one model.

    Args:
        engines: one per replica.
        image_pool: decodes their images; None to decode them in this process.
    """

    def __init__(self, engines: Sequence[Engine], image_pool: ImagePool | None = None) -> None:
        self.all = [Replica(engine, image_pool) for engine in engines]
        self._by_conversation: OrderedDict[int, Replica] = OrderedDict()

    async def open(self) -> None:
        """Start to accept requests."""
        for replica in self.all:
            await replica.async_engine.__aenter__()

    async def close(self) -> None:
        """End all requests with a UsageError."""
        for replica in self.all:
            await replica.async_engine.close()

    @property
    def num_pending(self) -> int:
        """Replies that are running or waiting."""
        return sum(replica.num_pending for replica in self.all)

    @contextmanager
    def reserve(self, count: int, conversation: int) -> Iterator[Replica]:
        """A replica with room for `count` replies: the one with the conversation in its caches, or the least busy one.

        Raises:
            ApiError: 429, the queues of all replicas are full.
        """
        replica = self._choose(count, conversation)
        self._by_conversation[conversation] = replica
        self._by_conversation.move_to_end(conversation)
        while len(self._by_conversation) > _MAX_CONVERSATIONS:
            self._by_conversation.popitem(last=False)
        replica.num_pending += count
        try:
            yield replica
        finally:
            replica.num_pending -= count

    def _choose(self, count: int, conversation: int) -> Replica:
        known = self._by_conversation.get(conversation)
        if known is not None and known.num_pending + count <= known.engine.num_slots:
            return known  # the conversation is in its caches, and a slot is free
        least = min(self.all, key=lambda replica: replica.num_pending)
        if least.num_pending + count > least.engine.num_slots + least.engine.max_waiting:
            raise busy(
                f"{self.num_pending} replies are running or waiting, which is the limit (max_waiting). Try again later."
            )
        return least
