"""Batches of about equally long rows, in an order that seed and epoch alone decide."""

from itertools import chain

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import UsageError
from fastvlm.training.data.length_groups import LengthGroupedBatches

LENGTHS = [int(length) for length in torch.randint(10, 2000, (1003,), generator=torch.Generator().manual_seed(3))]


def padding(batches):
    return sum(max(map(LENGTHS.__getitem__, batch)) * len(batch) for batch in batches) - sum(LENGTHS)


@given(count=st.integers(0, 300), batch_size=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_every_row_comes_once(count, batch_size, seed, epoch):
    order = LengthGroupedBatches(LENGTHS[:count], batch_size, seed=seed)
    order.set_epoch(epoch)
    assert sorted(order) == list(range(count)) and len(order) == count
    sizes = [len(batch) for batch in order.batches()]
    assert all(size == batch_size for size in sizes[:-1])


def test_little_is_padding():
    grouped = LengthGroupedBatches(LENGTHS, 8)
    chance = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(0)).tolist()
    plain = padding([chance[k : k + 8] for k in range(0, len(chance), 8)])
    assert padding(grouped.batches()) < plain / 10


def test_the_longest_comes_first():
    order = LengthGroupedBatches(LENGTHS[:1000], 8)
    for epoch in range(3):
        order.set_epoch(epoch)
        assert LENGTHS[next(iter(order))] == max(LENGTHS[:1000])


def test_seed_and_epoch_decide():
    def order(seed, epoch):
        batches = LengthGroupedBatches(LENGTHS, 8, seed=seed)
        batches.set_epoch(epoch)
        return tuple(batches)

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_a_run_that_goes_on_sees_what_it_has_not_seen():
    """As transformers' Trainer does it: its loader is prepared by accelerate, told the epoch, and skips batches."""

    def loader():
        order = LengthGroupedBatches(LENGTHS, 8, seed=4)
        rows = torch.utils.data.DataLoader(torch.arange(len(LENGTHS)), batch_size=8, sampler=order)
        return Accelerator(cpu=True).prepare(rows)

    def batches(prepared, epoch):
        prepared.set_epoch(epoch)
        return [batch.tolist() for batch in prepared]

    whole = loader()
    first, second = batches(whole, 0), batches(whole, 1)
    assert first != second and sorted(chain.from_iterable(second)) == list(range(len(LENGTHS)))
    assert batches(skip_first_batches(loader(), 5), 1) == second[5:]


def test_a_batch_has_rows():
    with pytest.raises(UsageError, match="batch_size is 0"):
        LengthGroupedBatches(LENGTHS, 0)
