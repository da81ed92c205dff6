"""Slots as a state machine: whatever is submitted, cancelled and finished, nothing is lost and no slot used twice."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from fastvlm.engine.scheduler import Admission, Scheduler, common_prefix
from fastvlm.errors import EngineBusyError, UsageError

# Few different tokens and images, so that prompts share beginnings.
KEYS = st.lists(st.sampled_from([1, 2, "image a", "image b"]), min_size=1, max_size=6)
CHUNK, RATIO = 2, 3.0


class Requests(RuleBasedStateMachine):
    """A scheduler beside a model of it that is too simple to be wrong: a queue, and the slots' contents."""

    ids = Bundle("ids")

    def __init__(self):
        super().__init__()
        self.num_slots, self.max_waiting = 3, 4
        self.scheduler = Scheduler(self.num_slots, self.max_waiting, admission_ratio=RATIO, chunk_tokens=CHUNK)
        self.queue: list[int] = []
        self.prompts: dict[int, list] = {}
        self.placed: dict[int, int] = {}
        self.starting: int | None = None
        self.contents: list[list] = [[] for _ in range(self.num_slots)]  # what the cache really holds
        self.ended: list[int] = []

    @rule(target=ids, keys=KEYS)
    def submit(self, keys):
        request = len(self.prompts)
        self.prompts[request] = keys
        num_free = self.num_slots - len(self.placed)
        assert len(self.queue) - num_free <= self.max_waiting
        if len(self.queue) - num_free == self.max_waiting:
            with pytest.raises(EngineBusyError, match=f"{len(self.queue)} are waiting"):
                self.scheduler.submit(request, keys)
            self.ended.append(request)  # refused
        else:
            self.scheduler.submit(request, keys)
            self.queue.append(request)
        return request

    @property
    def decoding(self):
        return [request for request in self.placed if request != self.starting]

    @rule()
    def admit(self):
        admission = self.scheduler.admit()
        is_possible = self.queue and len(self.placed) < self.num_slots and self.starting is None
        assert (admission is not None) == bool(is_possible), "a request waits beside a free slot"
        if admission is None:
            return
        assert admission.request_id == self.queue.pop(0), "not in order"
        assert admission.slot not in self.placed.values(), "slot used twice"
        self.placed[admission.request_id], self.starting = admission.slot, admission.request_id
        keys = self.prompts[admission.request_id]
        reused = [] if admission.source is None else self.contents[admission.source][: admission.num_reused]
        assert reused == keys[: admission.num_reused], "reuse of another prompt's values"
        assert admission.num_reused < len(keys), "nothing left to compute logits from"
        longest = max(common_prefix(keys, held) for held in self.contents)
        assert admission.num_reused == min(longest, len(keys) - 1), "a longer prefix was there"
        self.contents[admission.slot] = list(reused)
        self.scheduler.computed(admission.request_id, reused)

    @precondition(lambda self: self.starting is not None)
    @rule()
    def compute_a_chunk(self):
        slot, keys = self.placed[self.starting], self.prompts[self.starting]
        left = keys[len(self.contents[slot]) :]
        chunk = left[: self.scheduler.next_chunk(len(left))]
        assert len(chunk) == (min(CHUNK, len(left)) if self.decoding else len(left))
        self.contents[slot] += chunk
        self.scheduler.computed(self.starting, chunk)
        if len(chunk) == len(left):
            self.scheduler.started()
            self.starting = None

    @precondition(lambda self: self.decoding)
    @rule(token=st.sampled_from([1, 2]))
    def decode(self, token):
        for request in self.decoding:
            self.scheduler.computed(request, [token])
            self.contents[self.placed[request]].append(token)

    @rule(request=consumes(ids))
    def cancel_or_finish(self, request):
        is_known = request in self.queue or request in self.placed
        assert self.scheduler.release(request) == is_known
        assert not self.scheduler.release(request), "finished twice"
        if is_known:
            self.ended.append(request)
        if request in self.queue:
            self.queue.remove(request)
        self.placed.pop(request, None)
        self.starting = None if request == self.starting else self.starting

    @rule()
    def forget(self):
        self.scheduler.forget()
        for slot in set(range(self.num_slots)) - set(self.placed.values()):
            self.contents[slot] = []

    @invariant()
    def nothing_is_lost(self):
        assert self.scheduler.waiting == tuple(self.queue)
        assert self.scheduler.running == self.placed
        assert self.scheduler.starting == self.starting and list(self.scheduler.decoding) == self.decoding
        assert sorted([*self.queue, *self.placed, *self.ended]) == sorted(self.prompts)

    @invariant()
    def slices_end_only_for_somebody(self):
        if not self.decoding:
            assert not self.scheduler.must_pause(1e9, 1.0, 1.0)
            return
        can_start = 1 + min(self.num_slots - len(self.placed), len(self.queue))
        longest = 3.0 * max(1.0, can_start / len(self.decoding))
        for piece_s in (0.2, longest):
            assert self.scheduler.must_pause(longest + 0.1 - piece_s, piece_s, 1.0)
            assert not self.scheduler.must_pause(longest - 0.1 - piece_s, piece_s, 1.0)

    @invariant()
    def held_is_what_the_cache_holds(self):
        assert [list(self.scheduler.held(slot)) for slot in range(self.num_slots)] == self.contents


TestRequests = Requests.TestCase
TestRequests.settings = settings(stateful_step_count=40)


@given(KEYS, KEYS)
def test_common_prefix(first, second):
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def run(scheduler, request, keys, answer=()):
    scheduler.submit(request, keys)
    admission = scheduler.admit()
    scheduler.computed(request, [*keys, *answer])
    scheduler.started()
    return admission


def test_a_conversation_goes_on_in_its_slot():
    scheduler = Scheduler(3, 4)
    assert run(scheduler, 0, [1, "p", "p", 2], answer=[3, 4]) == Admission(0, slot=0)
    scheduler.release(0)
    assert run(scheduler, 1, [1, "p", "p", 2, 3, 4, 5, 6]) == Admission(1, slot=0, source=0, num_reused=6)


def test_a_new_question_about_an_image_leaves_the_old_conversation_alone():
    scheduler = Scheduler(2, 4)
    run(scheduler, 0, [1, "p", "p", 2], answer=[3, 4])
    scheduler.release(0)
    assert run(scheduler, 1, [1, "p", "p", 9]) == Admission(1, slot=1, source=0, num_reused=3)
    scheduler.release(1)
    assert scheduler.held(0) == (1, "p", "p", 2, 3, 4)


def test_running_requests_lend_their_beginning():
    scheduler = Scheduler(2, 4)
    run(scheduler, 0, [1, "p", 2])
    assert run(scheduler, 1, [1, "p", 5]) == Admission(1, slot=1, source=0, num_reused=2)


def test_the_slot_idle_longest_is_taken():
    scheduler = Scheduler(3, 4)
    for request in range(3):
        run(scheduler, request, [10 + request])
    for request in (1, 2, 0):
        scheduler.release(request)
    assert run(scheduler, 3, [7]).slot == 0, "its request was admitted first"


def test_one_slot_reuses_itself():
    scheduler = Scheduler(1, 1)
    run(scheduler, 0, [1, "p", 2, 3])
    scheduler.release(0)
    assert run(scheduler, 1, [1, "p", 4]) == Admission(1, slot=0, source=0, num_reused=2)


def test_another_image_is_another_prefix():
    scheduler = Scheduler(1, 1)
    run(scheduler, 0, [1, "p", "p", 2])
    scheduler.release(0)
    assert run(scheduler, 1, [1, "q", "q", 2]).num_reused == 1


def test_a_cancelled_request_makes_room_at_once():
    scheduler = Scheduler(1, 1)
    run(scheduler, 0, [1])
    scheduler.submit(1, [2])
    assert scheduler.admit() is None
    scheduler.release(0)
    assert scheduler.admit() == Admission(1, slot=0)


def test_one_starts_at_a_time():
    scheduler = Scheduler(3, 4)
    for request in range(2):
        scheduler.submit(request, [1])
    assert scheduler.admit() == Admission(0, slot=0)
    assert scheduler.admit() is None and scheduler.waiting == (1,)
    scheduler.started()
    assert scheduler.admit() == Admission(1, slot=1)


def test_who_is_cancelled_while_starting_leaves_what_was_computed_and_lets_the_next_one_start():
    scheduler = Scheduler(2, 4)
    for request in range(2):
        scheduler.submit(request, [1, "p", "p", 2])
    scheduler.admit()
    scheduler.computed(0, [1, "p"])
    scheduler.release(0)
    assert scheduler.admit() == Admission(1, slot=0, source=0, num_reused=2)


def test_a_slice_is_longer_by_as_much_as_more_can_start_than_run():
    scheduler = Scheduler(4, 9, admission_ratio=2.0)
    run(scheduler, 0, [1])
    for request in range(1, 9):
        scheduler.submit(request, [2])
    scheduler.admit()  # of those that wait two have a slot, so three can start while one runs
    assert not scheduler.must_pause(5.9, 0.0, 1.0) and scheduler.must_pause(6.1, 0.0, 1.0)


def test_without_a_ratio_and_chunks_nothing_is_cut():
    scheduler = Scheduler(2, 4)
    run(scheduler, 0, [1])
    scheduler.submit(1, [2])
    scheduler.admit()
    assert scheduler.decoding == (0,)
    assert not scheduler.must_pause(1e9, 1.0, 1e-9) and scheduler.next_chunk(10**6) == 10**6


@pytest.mark.parametrize("settings", [{"admission_ratio": 0}, {"admission_ratio": math.nan}, {"chunk_tokens": 0}])
def test_slices_of_nothing_are_refused(settings):
    with pytest.raises(UsageError, match="above 0, and at least 1 token"):
        Scheduler(1, 1, **settings)


@pytest.mark.parametrize(("slots", "waiting"), [(0, 1), (1, 0)])
def test_no_room_at_all_is_refused(slots, waiting):
    with pytest.raises(UsageError, match="at least 1"):
        Scheduler(slots, waiting)


def test_mistakes_are_told():
    scheduler = Scheduler(1, 2)
    scheduler.submit(0, [1])
    for request, keys in ((0, [1]), (1, [])):
        with pytest.raises(UsageError, match="known already, or its prompt is empty"):
            scheduler.submit(request, keys)
