"""While a request starts, the others get their tokens; and all say what `generate` says, whatever is cut where."""

import asyncio
import math

import engines
import pytest
import tiny
import torch

from fastvlm.backends import local
from fastvlm.engine.async_engine import AsyncEngine
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import UsageError

LONG = SamplingParams(max_new_tokens=150)


class Counted:
    """The fast encoder, counting what was begun, what was finished, and its slices."""

    def __init__(self, model):
        self.embed, self.begun, self.finished, self.num_slices = engines.CpuEncode(model), 0, 0, 0

    def __call__(self, pixel_values):
        return self.embed(pixel_values)

    def slices(self, pixel_values):
        self.begun += 1
        work = self.embed.slices(pixel_values)
        try:
            while True:
                next(work)
                self.num_slices += 1
                yield
        except StopIteration as end:
            self.finished += 1
            return end.value


@pytest.fixture
def encode(model):
    return Counted(model)


@pytest.fixture
def finest(make_engine, encode, monkeypatch):
    """Makes engines that pause wherever they can: chunks of three tokens, and slices of one step of the encoder."""
    monkeypatch.setattr(local, "_CHUNK_TOKENS", 3)

    def make(**settings):
        engine = make_engine(**{"admission_ratio": 1e-9, "encode": encode, **settings})
        engine.stop_token_ids = frozenset()  # replies end at their limit
        return engine

    return make


class Running:
    """A reply that goes on, and what it has said."""

    def __init__(self, engine, asked, params=LONG):
        self.engine, self.asked, self.params, self.said = engine, asked, params, []
        self.request = engine.submit(asked.inputs, params)
        self.step()

    def step(self):
        """One step; this reply's events are kept, the others' returned."""
        events = self.engine.step()
        own = [event.token_id for event in events if event.request_id == self.request]
        assert len(own) == 1, "it stood still"
        self.said += own
        return [event for event in events if event.request_id != self.request]

    def until(self, request):
        """Steps until the last event of `request`; its token ids, and how many steps the first took."""
        tokens, first = [], None
        for number in range(1, 140):
            for event in self.step():
                if event.request_id == request:
                    tokens.append(event.token_id)
                    first = first or number
                    if event.finish_reason is not None:
                        return tuple(tokens), first
        raise AssertionError("it did not end")

    def check(self, model):
        """What it said is what `generate` says, up to where that ends."""
        expected = self.asked.generated(model, len(self.said))
        assert len(expected) > 10 and tuple(self.said[: len(expected)]) == expected


def same(tokens, asked, model):
    """True if `tokens`, which no end token ends, begin with what `generate` says."""
    expected = asked.generated(model, len(tokens))
    return tokens[: len(expected)] == expected


@pytest.mark.parametrize("layout", ["tttttttti", "titt", "iitt", "ittitt", "t", "tttt"])
def test_a_reply_goes_on_while_another_starts(layout, finest, encode, model, question, short):
    running = Running(finest(), question("ttttt", seed=3))
    asked = question(layout, seed=4)
    tokens, steps = running.until(running.engine.submit(asked.inputs, short))
    assert same(tokens, asked, model)
    running.check(model)
    num_chunks = math.ceil(len(asked.ids) / 3)
    assert steps == encode.num_slices + layout.count("i") + num_chunks, "a decoding step between any two"
    assert encode.begun == layout.count("i")


def test_two_that_come_together_start_one_after_the_other(finest, model, question, short):
    running = Running(finest(), question("ttttt", seed=3))
    asked = [question("titt", seed=4, image_seed=4), question("itti", seed=5, image_seed=5)]
    requests = [running.engine.submit(one.inputs, short) for one in asked]
    tokens, order = {request: [] for request in requests}, []
    while any(len(said) < 12 for said in tokens.values()):
        for event in running.step():
            order += [] if event.request_id in order else [event.request_id]
            tokens[event.request_id].append(event.token_id)
    assert order == requests
    assert all(same(tuple(tokens[request]), one, model) for request, one in zip(requests, asked, strict=True))
    running.check(model)


def test_of_a_beginning_that_is_there_nothing_is_computed(finest, encode, model, question, short):
    """That of a running reply, and of one that has ended; the last prompt ends with the image itself."""
    engine, image, head = finest(num_slots=2), tiny.images(1), tiny.prompt("tttit", seed=8)

    def about_the_image(ids):
        asked = question("t")
        asked.ids, asked.inputs = ids, {"input_ids": torch.tensor([ids]), "pixel_values": image}
        return asked

    running = Running(engine, about_the_image([*head, 9, 10]))
    for ids, num_chunks in (([*head, *range(20, 27)], 3), ([*head, *range(30, 34)], 2), (head[:-1], 1)):
        asked = about_the_image(ids)
        tokens, steps = running.until(engine.submit(asked.inputs, short))
        assert same(tokens, asked, model) and steps == num_chunks
    assert encode.begun == 1
    running.check(model)


@pytest.mark.parametrize("steps", [1, 4, 20, "encoded", "first chunk"])
def test_who_is_cancelled_while_starting_frees_slot_and_image(steps, finest, encode, model, question, short):
    engine = finest(num_slots=2)
    running = Running(engine, question("ttttt", seed=3))
    asked = question("ttttitttt", seed=4)
    request = engine.submit(asked.inputs, short)
    if isinstance(steps, int):
        for _ in range(steps):
            running.step()
    else:
        while encode.finished == 0:
            running.step()
        if steps == "first chunk":
            running.step()
    assert engine.num_running == 2
    assert engine.cancel(request) and not engine.cancel(request)
    assert engine.num_running == 1, "the slot is free at once"
    assert len(engine._encoder_cache) == (0 if isinstance(steps, int) else 1), "half an image is kept"
    assert [(event.request_id, event.finish_reason) for event in running.step()] == [(request, "cancelled")]
    begun = encode.begun
    again = engine.submit(asked.inputs, short)
    tokens, _ = running.until(again)
    assert same(tokens, asked, model)
    assert encode.begun == begun + isinstance(steps, int)
    running.check(model)


def test_one_that_waits_starts_where_another_was_cancelled_halfway(finest, model, question, short):
    engine = finest(num_slots=2)
    running = Running(engine, question("ttttt", seed=3))
    first, second = (engine.submit(question("ttttit", seed=seed).inputs, short) for seed in (4, 5))
    for _ in range(6):
        running.step()
    engine.cancel(first)
    assert same(running.until(second)[0], question("ttttit", seed=5), model)
    running.check(model)


def test_what_fails_halfway_fails_alone(finest, model, question, short, encode):
    def slices(pixel_values):
        yield
        yield
        raise MemoryError("too much")

    engine = finest()
    running = Running(engine, question("ttttt", seed=3))
    encode.slices = slices
    request = engine.submit(question("titt").inputs, short)
    events = [event for _ in range(3) for event in running.step()]
    assert [(event.request_id, type(event.error)) for event in events] == [(request, MemoryError)]
    assert engine.num_running == 1 and len(engine._encoder_cache) == 0
    del encode.slices
    asked = question("titt")
    assert same(running.until(engine.submit(asked.inputs, short))[0], asked, model)
    running.check(model)


def test_with_nobody_else_running_a_request_starts_in_one_step(finest, question, short):
    engine = finest()
    engine.submit(question("ttttitttt").inputs, short)
    assert len(engine.step()) == 1


def test_when_the_others_have_ended_the_rest_is_done_at_once(finest, encode, model, question):
    engine = finest()
    few = SamplingParams(max_new_tokens=4)
    engine.submit(question("ttttt", seed=3).inputs, few)
    engine.step()
    asked = question("ttttitttt", seed=4)
    request = engine.submit(asked.inputs, few)
    counts = [len([event for event in engine.step() if event.request_id == request]) for _ in range(3)]
    assert counts == [0, 0, 1] and encode.finished == 1


def test_without_slices_it_starts_in_one_step_beside_others_too(finest, model, question, short):
    running = Running(finest(admission_ratio=math.inf), question("ttttt", seed=3))
    asked = question("ttttitttt", seed=4)
    tokens, steps = running.until(running.engine.submit(asked.inputs, short))
    assert steps == 1 and same(tokens, asked, model)


def test_with_fixed_shapes_images_are_encoded_whole(finest, encode, model, question, short):
    """As a graph on a GPU is: there is no leaving it."""
    running = Running(finest(has_fixed_shapes=True), question("ttttt", seed=3))
    asked = question("ttttitttt", seed=4)
    tokens, steps = running.until(running.engine.submit(asked.inputs, short))
    assert encode.num_slices == 0 and steps == 1 + math.ceil(len(asked.ids) / 3)
    assert same(tokens, asked, model)
    running.check(model)


class Timed:
    """An encoder of twenty steps, each of half a second of a clock that nothing else moves, but for decoding."""

    def __init__(self, encoder):
        self.encoder, self.now_s = encoder, 0.0

    def __call__(self, pixel_values):
        return self.encoder(pixel_values)

    def slices(self, pixel_values):
        for _ in range(20):
            self.now_s += 0.5
            yield
        return self.encoder(pixel_values)


@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 21), (1, 11), (4, 3), (10, 2), (1000, 1)])
def test_a_slice_is_as_long_as_so_many_decoding_steps(ratio, steps, make_engine, encoder, question, short):
    encode = Timed(encoder)
    engine = make_engine(encode=encode, admission_ratio=ratio, clock=lambda: encode.now_s)
    engine.stop_token_ids, decode = frozenset(), engine.backend.decoder.decode

    def decode_in_a_second(*args):
        encode.now_s += 1.0
        return decode(*args)

    engine.backend.decoder.decode = decode_in_a_second
    engine.submit(question("tt", seed=3).inputs, SamplingParams(max_new_tokens=40))
    engine.step()
    request, begun_s = engine.submit(question("titt", seed=4).inputs, short), encode.now_s
    for number in range(1, steps):
        assert request not in [event.request_id for event in engine.step()]
        assert encode.now_s - begun_s <= (1 + ratio) * number, "a slice was too long"
    assert request in [event.request_id for event in engine.step()]
    assert encode.now_s - begun_s == 10 + steps, "all the work, and a decoding step a slice"


@pytest.mark.parametrize("ratio", [0, -1, math.nan])
def test_an_impossible_ratio_is_refused(ratio, make_engine):
    with pytest.raises(UsageError, match="admission_ratio"):
        make_engine(admission_ratio=ratio)


def test_who_hangs_up_while_starting_frees_the_slot_within_a_step(finest, encode, question):
    engine = finest(num_slots=2)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            running = async_engine.stream(question("ttttt", seed=3).inputs, SamplingParams(max_new_tokens=240))
            await anext(running)
            task = asyncio.create_task(async_engine.generate(question("ttttitttt", seed=4).inputs, LONG))
            while encode.num_slices < 3:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            slices = encode.num_slices
            while engine.num_running == 2:
                await asyncio.sleep(0)
            assert encode.finished == 0 and encode.num_slices <= slices + 1
            assert (await anext(running)).token_id is not None
            await running.aclose()

    asyncio.run(asyncio.wait_for(scene(), 120))
