"""Several engines in one process: who answers, how many are let in."""

import pytest

from fastvlm.server.http.errors import ApiError
from fastvlm.server.replicas import Replicas


class FakeEngine:
    num_slots, max_waiting = 2, 1


@pytest.fixture
def replicas():
    return Replicas([FakeEngine(), FakeEngine()])


def test_the_least_busy_one_answers(replicas):
    with replicas.reserve(1, 1) as first, replicas.reserve(1, 2) as second:
        assert {first, second} == set(replicas.all)
        assert replicas.num_pending == 2
    assert replicas.num_pending == 0


def test_a_conversation_goes_back_to_the_one_that_knows_it_while_a_slot_is_free(replicas):
    with replicas.reserve(1, 1) as first:
        pass
    with replicas.reserve(1, 2), replicas.reserve(1, 1) as again:
        assert again is first
        with replicas.reserve(1, 1) as elsewhere:
            assert elsewhere is not first


def test_more_than_all_can_owe_is_429_and_leaves_nothing(replicas):
    with replicas.reserve(3, 1), replicas.reserve(3, 2):
        with pytest.raises(ApiError) as raised, replicas.reserve(1, 3):
            pass
        assert raised.value.status == 429 and raised.value.headers["Retry-After"]
    with replicas.reserve(3, 3):
        assert replicas.num_pending == 3


def test_what_fails_inside_is_no_longer_owed(replicas):
    with pytest.raises(RuntimeError), replicas.reserve(2, 1):
        raise RuntimeError
    assert replicas.num_pending == 0
