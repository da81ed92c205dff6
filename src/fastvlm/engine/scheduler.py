"""Who runs where: requests into slots, and what a slot's cache still holds. Decides, and touches no tensor.

Requests are admitted in the order in which they came, one a step. A request waits while all slots are taken, or while
others came before it. A slot keeps what its last request left in the cache, and a new request that begins with the
same keys takes that over. A *key* stands for one token of a prompt: the token's id, or, where a picture stands, the
picture's content digest; so the same placeholders of different pictures differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from fastvlm.errors import EngineBusyError, UsageError

__all__ = ["Admission", "Key", "Scheduler", "common_prefix"]

Key = int | str


@dataclass(frozen=True)
class Admission:
    """Run `request_id` in `slot`, whose first `num_reused` tokens need not be computed.

    They lie in the cache of `source`: the slot itself, or another from which they are to be copied; None if there are
    none.
    """

    request_id: int
    slot: int
    source: int | None = None
    num_reused: int = 0


@dataclass
class _Slot:
    """A row of the cache: the tokens that it holds, who runs in it, and when it was last needed."""

    held: list[Key] = field(default_factory=list)
    request_id: int | None = None
    last_use: int = 0


class Scheduler:
    """Places requests.

    Args:
        num_slots: requests that run at the same time.
        max_waiting: requests that may wait for a slot, beside those for which one is free.
    """

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        if num_slots < 1 or max_waiting < 1:
            raise UsageError(f"Got {num_slots} slots and {max_waiting} waiting places; expected at least 1 of each.")
        self.max_waiting = max_waiting
        self._slots = [_Slot() for _ in range(num_slots)]
        self._waiting: OrderedDict[int, list[Key]] = OrderedDict()
        self._running: dict[int, int] = {}
        self._clock = count(1)

    @property
    def running(self) -> dict[int, int]:
        """Request -> slot, in the order of admission (a copy)."""
        return dict(self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Requests without a slot, the next one first."""
        return tuple(self._waiting)

    def held(self, slot: int) -> tuple[Key, ...]:
        """The keys whose values the cache of `slot` holds."""
        return tuple(self._slots[slot].held)

    def submit(self, request_id: int, keys: Sequence[Key]) -> None:
        """Put a request at the end of the queue.

        Raises:
            EngineBusyError: the slots are taken or spoken for, and `max_waiting` requests are waiting besides.
        """
        if len(self._running) + len(self._waiting) >= len(self._slots) + self.max_waiting:
            raise EngineBusyError(
                f"{len(self._running)} requests are running and {len(self._waiting)} are waiting, which is the limit. "
                "Try again later, or give the engine a larger max_waiting."
            )
        if request_id in self._waiting or request_id in self._running or not keys:
            raise UsageError(f"Request {request_id} is known already, or its prompt is empty.")
        self._waiting[request_id] = list(keys)

    def admit(self) -> Admission | None:
        """Give the first waiting request a free slot; None if there is no such request or no such slot.

        The slot holds nothing until :meth:`computed` says so: what is interrupted leaves nothing half done behind.
        """
        free = [index for index, slot in enumerate(self._slots) if slot.request_id is None]
        if not free or not self._waiting:
            return None
        request_id, keys = self._waiting.popitem(last=False)
        admission = self._place(request_id, keys, free)
        slot = self._slots[admission.slot]
        slot.request_id, slot.held, slot.last_use = request_id, [], next(self._clock)
        self._running[request_id] = admission.slot
        return admission

    def _place(self, request_id: int, keys: Sequence[Key], free: Sequence[int]) -> Admission:
        """The free slot that goes on where its last request ended; else the one that was idle longest.

        So a conversation stays in its slot, and what was said about one picture is not lost to a question that shares
        only its beginning, as long as there are older slots to take.
        """
        # The last token is always computed: its logits are what the first reply token is picked from.
        shared = [min(common_prefix(keys, slot.held), len(keys) - 1) for slot in self._slots]
        source = max(range(len(shared)), key=lambda index: shared[index])
        if shared[source] == 0:
            return Admission(request_id, self._oldest(free))
        self._slots[source].last_use = next(self._clock)
        goes_on = source in free and shared[source] == len(self._slots[source].held)
        return Admission(request_id, source if goes_on else self._oldest(free), source, shared[source])

    def _oldest(self, free: Sequence[int]) -> int:
        return min(free, key=lambda index: self._slots[index].last_use)

    def computed(self, request_id: int, keys: Sequence[Key]) -> None:
        """Note that the cache of the request's slot now holds the values of `keys` too, after those before."""
        self._slots[self._running[request_id]].held.extend(keys)

    def release(self, request_id: int) -> bool:
        """Take a finished or cancelled request out, at once; False if it is not known (any more)."""
        if request_id in self._waiting:
            del self._waiting[request_id]
            return True
        if request_id not in self._running:
            return False
        self._slots[self._running.pop(request_id)].request_id = None
        return True

    def forget(self) -> None:
        """Nothing that is in the cache is to be used again; running requests go on."""
        for slot in self._slots:
            if slot.request_id is None:
                slot.held = []


def common_prefix(first: Sequence[Key], second: Sequence[Key]) -> int:
    """How many keys both begin with."""
    shortest = min(len(first), len(second))
    if first[:shortest] == second[:shortest]:  # compared in C; the usual case of a conversation that goes on
        return shortest
    return next(index for index in range(shortest) if first[index] != second[index])
