"""Who runs where and when: requests into slots, what a slot's cache still holds. Decides, and touches no tensor.

Requests are admitted in the order in which they came, one at a time: one that has a slot *starts* until its images
and its prompt are computed, and then gets a token a step. While others get theirs, the starting one is worked on in
slices, and between two slices is a decoding step: a slice ends before it would take more than `admission_ratio` times
as long as that step, but has at least one piece of the work (a step of the encoder, a chunk of the prompt). So running
replies slow down to about 1 / (1 + admission_ratio) of their speed, for as long as requests start, and a start takes
about 1 + 1 / admission_ratio times as long as alone. If more can start than run, slices are longer by as much: a step
for few holds up many. With nobody else running there are no slices.

A request waits while all slots are taken, or while others came before it. A slot keeps what its last request left in
the cache, and a new request that begins with the same keys takes that over. A *key* stands for one token of a prompt:
the token's id, or, where an image stands, the image's content digest; so the same placeholders of different images
differ.
"""

from __future__ import annotations

import math
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
        admission_ratio: how long a slice of work on a starting request is, in decoding steps; ``math.inf`` for all of
            the work at once.
        chunk_tokens: tokens of a prompt that are computed in one piece while others run; None for all.
    """

    def __init__(
        self, num_slots: int, max_waiting: int, *, admission_ratio: float = math.inf, chunk_tokens: int | None = None
    ) -> None:
        if num_slots < 1 or max_waiting < 1:
            raise UsageError(f"Got {num_slots} slots and {max_waiting} waiting places; expected at least 1 of each.")
        if not admission_ratio > 0 or (chunk_tokens is not None and chunk_tokens < 1):
            raise UsageError(
                f"Got an admission_ratio of {admission_ratio} and chunks of {chunk_tokens} tokens; expected a number "
                "above 0, and at least 1 token or None."
            )
        self.max_waiting = max_waiting
        self._admission_ratio, self._chunk_tokens = admission_ratio, chunk_tokens
        self._slots = [_Slot() for _ in range(num_slots)]
        self._waiting: OrderedDict[int, list[Key]] = OrderedDict()
        self._running: dict[int, int] = {}
        self._starting: int | None = None
        self._clock = count(1)

    @property
    def running(self) -> dict[int, int]:
        """Request -> slot, in the order of admission (a copy); the starting one has its slot too."""
        return dict(self._running)

    @property
    def starting(self) -> int | None:
        """The request in a slot whose prompt is not computed yet."""
        return self._starting

    @property
    def decoding(self) -> tuple[int, ...]:
        """Requests that get a token a step, in the order of admission."""
        return tuple(request_id for request_id in self._running if request_id != self._starting)

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
        """Let the first waiting request start in a free slot.

        None if there is no such request or no such slot, or while another one starts. The slot holds nothing until
        :meth:`computed` says so: what is interrupted leaves nothing half done behind.
        """
        free = [index for index, slot in enumerate(self._slots) if slot.request_id is None]
        if self._starting is not None or not free or not self._waiting:
            return None
        request_id, keys = self._waiting.popitem(last=False)
        admission = self._place(request_id, keys, free)
        slot = self._slots[admission.slot]
        slot.request_id, slot.held, slot.last_use = request_id, [], next(self._clock)
        self._running[request_id], self._starting = admission.slot, request_id
        return admission

    def _place(self, request_id: int, keys: Sequence[Key], free: Sequence[int]) -> Admission:
        """The free slot that goes on where its last request ended; else the one that was idle longest.

        So a conversation stays in its slot, and what was said about one image is not lost to a question that shares
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

    def next_chunk(self, num_left: int) -> int:
        """How many of the `num_left` tokens of the starting request's prompt are computed in one piece."""
        return num_left if self._chunk_tokens is None or not self.decoding else min(num_left, self._chunk_tokens)

    def must_pause(self, slice_s: float, piece_s: float, step_s: float) -> bool:
        """True if the work on the starting request has to wait for a decoding step.

        Args:
            slice_s: seconds that it has taken since the last one.
            piece_s: seconds that the latest piece of it took, and so presumably the next one will.
            step_s: seconds that the last decoding step took.
        """
        num_decoding = len(self.decoding)
        if not num_decoding:
            return False
        num_free = len(self._slots) - len(self._running)
        crowd = (1 + min(num_free, len(self._waiting))) / num_decoding
        return slice_s + piece_s > self._admission_ratio * step_s * max(1.0, crowd)

    def started(self) -> None:
        """The starting request's prompt is computed: it gets a token a step from now on."""
        self._starting = None

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
        if request_id == self._starting:
            self._starting = None
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
