"""Continuous-batching scheduler: assigns requests to KV-cache slots and tracks reusable prefixes. Holds no tensors.

Requests are admitted one at a time in order of arrival. An admitted request is *starting* until its images and prompt
are computed; then it *decodes*, one token a step. While others decode, the starting request is computed in slices with
a decoding step between two slices. A slice ends before it would take more than `admission_ratio` times as long as that
step, but it contains at least one piece of work (an encoder step or a prompt chunk). Decoding thus slows down to about
1 / (1 + admission_ratio) of its speed while requests start, and a start takes about 1 + 1 / admission_ratio times as
long as alone. If more requests can start than decode, slices are longer in proportion, because each step for a few
delays many. Without decoding requests there are no slices.

A request waits while all slots are taken or earlier requests wait. A slot keeps the keys and values of its last
request; a new request that begins with the same keys reuses them. A *key* stands for one prompt token: its token id,
or the content digest of the image at a placeholder, so placeholders of different images differ.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from fastvlm.errors import EngineBusyError, UsageError

Key = int | str


@dataclass(frozen=True)
class Admission:
    """Run `request_id` in `slot`, whose first `num_reused` tokens are cached already.

    They are in the cache of `source`: the slot itself, or another slot to copy from; None if nothing is reused.
    """

    request_id: int
    slot: int
    source: int | None = None
    num_reused: int = 0


@dataclass
class _Slot:
    """A row of the KV cache: its keys, its running request and its last use."""

    held: list[Key] = field(default_factory=list)
    request_id: int | None = None
    last_use: int = 0


class Scheduler:
    """Assigns requests to slots.

    Args:
        num_slots: requests that run at the same time.
        max_waiting: requests that may wait for a slot, in addition to those for which a slot is free.
        admission_ratio: length of a slice of a starting request in decoding steps; ``math.inf`` for one slice.
        chunk_tokens: prompt tokens that are prefilled at once while others decode; None for all.
    """

    def __init__(
        self, num_slots: int, max_waiting: int, *, admission_ratio: float = math.inf, chunk_tokens: int | None = None
    ) -> None:
        if num_slots < 1 or max_waiting < 1:
            raise UsageError(f"Got {num_slots} slots and {max_waiting} waiting requests; expected at least 1 of each.")
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
        """Request -> slot in order of admission (a copy), including the starting one."""
        return dict(self._running)

    @property
    def starting(self) -> int | None:
        """The request whose prompt is being computed, or None."""
        return self._starting

    @property
    def decoding(self) -> tuple[int, ...]:
        """Requests that get one token a step, in order of admission."""
        return tuple(request_id for request_id in self._running if request_id != self._starting)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Requests without a slot, the next one first."""
        return tuple(self._waiting)

    def held(self, slot: int) -> tuple[Key, ...]:
        """The keys in the cache of `slot`."""
        return tuple(self._slots[slot].held)

    def submit(self, request_id: int, keys: Sequence[Key]) -> None:
        """Append a request to the queue.

        Raises:
            EngineBusyError: all slots are taken or promised, and `max_waiting` further requests are waiting.
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
        """Start the first waiting request in a free slot.

        Returns None if no request waits, no slot is free, or another request is starting. The slot's keys are empty
        until :meth:`computed` adds them, so an interrupted request leaves no invalid prefix.
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
        """Choose the free slot whose content the request continues completely, else the least recently used free slot.

        A conversation thus stays in its slot, and a question that shares only a prefix of it does not overwrite it
        while older slots are free.
        """
        # The last token is always computed: the first reply token is sampled from its logits.
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
        """Number of the `num_left` prompt tokens of the starting request to prefill next."""
        return num_left if self._chunk_tokens is None or not self.decoding else min(num_left, self._chunk_tokens)

    def must_pause(self, slice_s: float, piece_s: float, step_s: float) -> bool:
        """True if the starting request has to wait for a decoding step.

        Args:
            slice_s: seconds of work since the last decoding step.
            piece_s: seconds of its latest piece of work, the estimate for the next piece.
            step_s: seconds of the last decoding step.
        """
        num_decoding = len(self.decoding)
        if not num_decoding:
            return False
        num_free = len(self._slots) - len(self._running)
        crowd = (1 + min(num_free, len(self._waiting))) / num_decoding
        return slice_s + piece_s > self._admission_ratio * step_s * max(1.0, crowd)

    def started(self) -> None:
        """Mark the starting request as decoding."""
        self._starting = None

    def computed(self, request_id: int, keys: Sequence[Key]) -> None:
        """Append `keys` to those in the cache of the request's slot."""
        self._slots[self._running[request_id]].held.extend(keys)

    def release(self, request_id: int) -> bool:
        """Remove a finished or cancelled request; False if it is unknown."""
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
        """Discard the prefixes of free slots; running requests go on."""
        for slot in self._slots:
            if slot.request_id is None:
                slot.held = []


def common_prefix(first: Sequence[Key], second: Sequence[Key]) -> int:
    """Length of the common prefix."""
    shortest = min(len(first), len(second))
    if first[:shortest] == second[:shortest]:  # compared in C; the usual case of a conversation that goes on
        return shortest
    return next(index for index in range(shortest) if first[index] != second[index])
