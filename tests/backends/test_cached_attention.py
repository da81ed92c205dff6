"""Attention over slots equals attention written out, position by position."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.backends import cached_attention as slot_attention
from fastvlm.backends.cached_attention import (
    attend_neighbors,
    attend_prompt,
    attend_rows,
    attend_rows_together,
    attend_run,
    attend_token,
)
from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.hf.checkpoint import plain_config

HEADS, KV_HEADS, WIDTH, CONTEXT, SLOTS = 4, 2, 8, 24, 3
LAYER = 1


def filled_cache(seed=0):
    """A cache full of numbers: what lies beyond a slot's tokens must not show."""
    cache = KeyValueCache(plain_config(tiny.config()).text_config, SLOTS, CONTEXT, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=generator))
    return cache


def new_tokens(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, HEADS, WIDTH, generator=generator), torch.randn(
        count, 2 * KV_HEADS, WIDTH, generator=generator
    )


def written_out(q, held, end):
    """One query (H, E) over the first `end` tokens of a slot (2 K, C, E); head h uses key/value head h // G."""
    rows = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        keys, values = held[group, :end], held[KV_HEADS + group, :end]
        rows.append(((keys @ q[head]) / WIDTH**0.5).softmax(0) @ values)
    return torch.cat(rows)


@given(st.integers(0, 10), st.integers(1, 10), st.integers(0, SLOTS - 1))
def test_a_prompt(start, num_tokens, slot):
    cache, (q, kv) = filled_cache(), new_tokens(num_tokens)
    before = cache.layers[LAYER].clone()
    mixed = attend_prompt(cache, slot, start, num_tokens)(LAYER, q, kv)
    held = cache.layers[LAYER][slot]
    assert torch.equal(held[:, start : start + num_tokens], kv.transpose(0, 1))
    for row in range(num_tokens):
        expected = written_out(q[row], held, start + row + 1)
        torch.testing.assert_close(mixed[row], expected, rtol=1e-4, atol=1e-5)
    before[slot, :, start : start + num_tokens] = kv.transpose(0, 1)
    assert torch.equal(cache.layers[LAYER], before), "something else was written"


@given(st.integers(0, CONTEXT - 1), st.integers(0, SLOTS - 1))
def test_a_token(position, slot):
    cache, (q, kv) = filled_cache(), new_tokens(1)
    before = cache.layers[LAYER].clone()
    mixed = attend_token(cache, slot, position)(LAYER, q, kv)
    expected = written_out(q[0], cache.layers[LAYER][slot], position + 1)
    torch.testing.assert_close(mixed[0], expected, rtol=1e-4, atol=1e-5)
    before[slot, :, position] = kv[0]
    assert torch.equal(cache.layers[LAYER], before), "something else was written"


ROWS = st.permutations(range(SLOTS)).flatmap(lambda slots: st.integers(1, SLOTS).map(lambda count: slots[:count]))


@given(st.integers(0, 10), st.integers(1, 10), st.integers(0, SLOTS - 1))
def test_a_few_tokens_of_one_slot_are_as_a_prompt(start, num_tokens, slot):
    (cache, other), (q, kv) = (filled_cache(), filled_cache()), new_tokens(num_tokens)
    mixed = attend_run(cache, slot, start, num_tokens)(LAYER, q, kv)
    expected = attend_prompt(other, slot, start, num_tokens)(LAYER, q, kv)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.layers[LAYER], other.layers[LAYER])


@given(st.permutations(range(SLOTS)), st.data())
def test_several_tokens_of_several_slots_are_as_one_after_the_other(order, data):
    runs = [(slot, data.draw(st.integers(0, 10)), data.draw(st.integers(1, 6))) for slot in order]
    slots = [slot for slot, _, count in runs for _ in range(count)]
    positions = [start + i for _, start, count in runs for i in range(count)]
    (cache, other, third), (q, kv) = (filled_cache(), filled_cache(), filled_cache()), new_tokens(len(slots))
    mixed = attend_rows(cache, slots, positions)(LAYER, q, kv)
    masked = together(third, slots, positions)(LAYER, q, kv)
    for row, place in enumerate(zip(slots, positions, strict=True)):
        alone = attend_token(other, *place)(LAYER, q[row : row + 1], kv[row : row + 1])
        torch.testing.assert_close(mixed[row], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masked[row], alone[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.layers[LAYER], other.layers[LAYER])


def together(cache, slots, positions):
    return attend_rows_together(cache, torch.tensor(slots), torch.tensor(positions), max(positions) + 1)


def one_after_the_other(cache, slots, positions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_attention, "ROW_TOKENS", -CONTEXT * SLOTS)
        return attend_rows(cache, slots, positions)


@pytest.mark.parametrize("attend", [attend_rows, one_after_the_other, attend_neighbors, together])
@given(slots=ROWS, data=st.data())
def test_tokens_of_several_slots_are_as_alone(attend, slots, data):
    positions = [data.draw(st.integers(0, CONTEXT - 1)) for _ in slots]
    q, kv = new_tokens(len(slots))
    together, apart = filled_cache(), filled_cache()
    mixed = attend(together, slots, positions)(LAYER, q, kv)
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        one = slice(row, row + 1)
        alone = attend_token(apart, slot, position)(LAYER, q[one], kv[one])
        torch.testing.assert_close(mixed[one], alone, rtol=1e-4, atol=1e-5)
        if attend is one_after_the_other:
            assert torch.equal(mixed[one], alone), "bit for bit"
    assert torch.equal(together.layers[LAYER], apart.layers[LAYER])


@pytest.mark.parametrize(
    ("slots", "positions", "is_together"),
    [
        ([0, 1], [20, 23], True),
        ([2, 1], [20, 23], True),
        ([0, 2], [20, 23], True),
        ([0, 2], [20_000, 20_000], False),
        ([0, 1], [20_000, 19_900], True),
        ([0, 1], [20_000, 19_000], False),
    ],
)
def test_slots_are_taken_together_where_that_is_less_work(monkeypatch, slots, positions, is_together):
    taken = []
    monkeypatch.setattr(slot_attention, "attend_neighbors", lambda *args: taken.append(args))
    attend_rows(filled_cache(), slots, positions)
    assert bool(taken) is is_together
