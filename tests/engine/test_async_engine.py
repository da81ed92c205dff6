"""AsyncEngine: the same replies as Engine, fair and bounded; a slot is freed when its listener stops."""

import asyncio
import threading
from contextlib import aclosing

import pytest
import tiny
import torch

from fastvlm.engine.async_engine import AsyncEngine
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import ContextLengthError, EngineBusyError, ImageTokenMismatchError, UsageError

LONG = SamplingParams(max_new_tokens=200)


@pytest.fixture
def endless(make_engine):
    """Makes engines whose replies end at their limit only."""

    def make(**settings):
        engine = make_engine(**settings)
        engine.stop_token_ids = frozenset()
        return engine

    return make


def run(scene, timeout_s=120):
    """`scene` in an event loop, after which neither task nor thread of ours is left."""

    async def whole():
        result = await asyncio.wait_for(scene(), timeout_s)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"
        return result

    result = asyncio.run(whole())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastvlm")]
    return result


async def until(condition):
    """Let others work until `condition()`; the caller's time limit ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.001)


def test_replies_are_those_of_generate(engine, model, question, short):
    asked = [question(layout, seed=n) for n, layout in enumerate(("tt", "titt", "itti", "tttt", "iit"))]

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            return await asyncio.gather(*(async_engine.generate(one.inputs, short) for one in asked))

    assert [reply.token_ids for reply in run(scene)] == [one.generated(model) for one in asked]


def test_events_come_one_by_one(engine, question, short):
    async def scene():
        async with AsyncEngine(engine) as async_engine:
            return [event async for event in async_engine.stream(question("titt").inputs, short)]

    events = run(scene)
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].completion.token_ids == tuple(event.token_id for event in events)
    assert events[-1].completion.text == "".join(event.text for event in events)


def test_steps_run_in_one_thread_that_is_not_the_loops(engine, question, short):
    names = set()
    original = engine.step
    engine.step = lambda: (names.add(threading.current_thread().name), original())[1]

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            await asyncio.gather(*(async_engine.generate(question("tt").inputs, short) for _ in range(3)))

    run(scene)
    assert len(names) == 1 and next(iter(names)).startswith("fastvlm-step")


@pytest.mark.parametrize("how", ["break", "close", "cancelled task"])
def test_who_stops_listening_frees_the_slot_within_a_step(how, endless, question):
    engine = endless(num_slots=1)
    steps = []
    original = engine.step
    engine.step = lambda: (steps.append(engine.num_running), original())[1]

    async def listen(async_engine, heard):
        async with aclosing(async_engine.stream(question("tt").inputs, LONG)) as events:
            async for _ in events:
                heard.set()
                if how == "break":
                    break

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            heard = asyncio.Event()
            if how == "close":
                stream = async_engine.stream(question("tt").inputs, LONG)
                await anext(stream)
                await stream.aclose()
            else:
                task = asyncio.create_task(listen(async_engine, heard))
                await heard.wait()
                if how == "cancelled task":
                    task.cancel()
                await asyncio.wait([task])
            before = sum(steps)  # in which it ran
            await until(lambda: engine.num_running == 0)
            assert sum(steps) <= before + 1 < 150, "steps went on"
            reply = await async_engine.generate(question("ttt").inputs, SamplingParams(max_new_tokens=2))
            assert len(reply.token_ids) == 2

    run(scene)


def test_a_task_cancelled_before_its_request_runs_leaves_nothing(endless, question):
    engine = endless(num_slots=1)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            first = async_engine.stream(question("tt").inputs, LONG)
            await anext(first)
            tasks = [asyncio.create_task(async_engine.generate(question("tt").inputs, LONG)) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()  # while its prompt is being prepared
            await until(lambda: engine.num_waiting == 2)
            tasks[1].cancel()  # while it waits for a slot
            await until(lambda: engine.num_waiting == 1)
            await first.aclose()
            assert len((await tasks[2]).token_ids) == 200
            assert not engine.has_work or engine.step() is not None
            assert engine.num_running == engine.num_waiting == 0

    run(scene)


def test_without_patience_a_full_engine_is_an_error(endless, question):
    engine = endless(num_slots=1, max_waiting=1)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            running = async_engine.stream(question("tt").inputs, LONG)
            await anext(running)
            waiting = asyncio.create_task(
                async_engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=2))
            )
            await until(lambda: engine.num_waiting == 1)
            with pytest.raises(EngineBusyError, match="2 requests are running or waiting"):
                await async_engine.generate(question("tt").inputs, is_patient=False)
            patient = asyncio.create_task(
                async_engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=3))
            )
            await asyncio.sleep(0.01)
            assert engine.num_waiting == 1, "let in beyond the limit"
            await running.aclose()
            assert len((await waiting).token_ids) == 2 and len((await patient).token_ids) == 3

    run(scene)


def test_many_at_once_are_all_answered(engine, question):
    """More than slots and waiting places together; they come in as others end."""
    engine._scheduler.max_waiting = 2

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            params = [SamplingParams(max_new_tokens=1 + n % 5) for n in range(20)]
            return await asyncio.gather(
                *(async_engine.generate(question("tt", seed=n).inputs, p) for n, p in enumerate(params))
            )

    assert all(reply.finish_reason in ("stop", "length") for reply in run(scene))


def test_a_slow_listener_delays_nobody(endless, question):
    engine = endless(num_slots=2)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            slow = async_engine.stream(question("tt").inputs, SamplingParams(max_new_tokens=50))
            await anext(slow)  # and then reads no more
            reply = await async_engine.generate(question("ttt").inputs, SamplingParams(max_new_tokens=100))
            assert len(reply.token_ids) == 100
            await until(lambda: engine.num_running == 0)
            assert len([event async for event in slow]) == 49, "all of its events were kept for it"

    run(scene)


def test_mistakes_are_raised_where_they_were_made(engine, encoder, question, short):
    async def scene():
        async with AsyncEngine(engine) as async_engine:
            fine = asyncio.create_task(async_engine.generate(question("titt").inputs, short))
            with pytest.raises(ContextLengthError, match="context is 256"):
                await async_engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=300))
            with pytest.raises(ImageTokenMismatchError):
                await async_engine.generate({**question("titt").inputs, "pixel_values": tiny.images(2)}, short)
            assert (await fine).token_ids

    run(scene)


def test_a_failing_image_fails_alone(make_engine, model, question, short):
    def fail(pixel_values):
        raise MemoryError("too much")

    async def scene():
        async with AsyncEngine(make_engine(encode=fail)) as async_engine:
            fine, wrong = await asyncio.gather(
                async_engine.generate(question("ttt").inputs, short),
                async_engine.generate(question("titt").inputs, short),
                return_exceptions=True,
            )
            assert fine.token_ids == question("ttt").generated(model)
            assert isinstance(wrong, MemoryError)

    run(scene)


def test_after_a_failing_step_new_requests_are_answered(engine, question, short):
    original, is_broken = engine.step, [True]

    def step():
        if is_broken[0]:
            raise MemoryError("out of memory")
        return original()

    engine.step = step

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            replies = await asyncio.gather(
                *(async_engine.generate(question("tt").inputs, short) for _ in range(3)), return_exceptions=True
            )
            assert [type(reply) for reply in replies] == [MemoryError] * 3
            is_broken[0] = False
            assert (await async_engine.generate(question("tt").inputs, short)).token_ids

    run(scene)


def test_closing_ends_all_requests(endless, question):
    engine = endless(num_slots=1)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            tasks = [asyncio.create_task(async_engine.generate(question("tt").inputs, LONG)) for _ in range(3)]
            await until(lambda: engine.num_running == 1 and engine.num_waiting == 2)
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(reply) for reply in replies] == [UsageError] * 3
        assert "AsyncEngine is closed" in str(replies[0])
        assert engine.num_running == engine.num_waiting == 0

    run(scene)


def test_only_an_open_engine_answers(engine, question):
    async def scene():
        async_engine = AsyncEngine(engine)
        with pytest.raises(UsageError, match="AsyncEngine is closed"):
            await async_engine.generate(question("tt").inputs)
        async with async_engine:
            pass
        with pytest.raises(UsageError, match="AsyncEngine is closed"):
            await async_engine.generate(question("tt").inputs)
        with pytest.raises(UsageError, match="opened before"):
            await async_engine.__aenter__()
        await async_engine.close()

    run(scene)


class Always:
    """Lets one token come and no other."""

    def __init__(self, token_id, size):
        self._allowed = torch.zeros(size, dtype=torch.bool)
        self._allowed[token_id] = True

    def allowed_mask(self):
        return self._allowed

    def accept(self, token_id):
        pass

    def forced_tokens(self):
        return []


def test_what_is_prepared_once_is_streamed_several_times_each_with_its_guide(endless, question):
    engine = endless()
    size = engine.config.text_config.vocab_size
    params = SamplingParams(max_new_tokens=5)

    async def scene():
        async with AsyncEngine(engine) as async_engine:
            prompt = await async_engine.prepare(question("tit").inputs)
            guides = [Always(token, size) for token in (3, 4)]
            return [await async_engine.generate(prompt, params, guide=guide) for guide in guides]

    assert [reply.token_ids for reply in run(scene)] == [(3,) * 5, (4,) * 5]
    assert engine.image_hits == (0, 1), "the second stream reuses the first one's prefix, image and all"
