"""Coroutines for threads that wait for them: who runs the loop, what a signal does, what is left at the end."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastvlm.engine.caller_loop import CallerLoop

CLOSED = ValueError("closed")


async def nothing():
    pass


@pytest.fixture
def hurried():
    return []


@pytest.fixture
def loop(hurried):
    opened = CallerLoop(lambda: hurried.append(True))
    yield opened
    opened.close(nothing())


async def thread_after(rounds):
    for _ in range(rounds):
        await asyncio.sleep(0)
    return threading.current_thread()


async def counted(most, steps):
    for number in range(most):
        await asyncio.sleep(0)
        steps.append(number)
        yield number


async def forever(ended):
    try:
        while True:
            await asyncio.sleep(0)
    finally:
        ended.append(threading.current_thread())


def test_a_thread_alone_runs_the_loop_itself(loop):
    before = threading.active_count()
    assert loop.run(thread_after(3), CLOSED) is threading.current_thread()
    assert list(loop.iterate(counted(4, []), CLOSED)) == [0, 1, 2, 3]
    with ThreadPoolExecutor(1) as other:
        assert other.submit(loop.run, thread_after(3), CLOSED).result() is not threading.current_thread()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_item_comes_before_the_next_is_computed(loop):
    steps = []
    items = loop.iterate(counted(5, steps), CLOSED)
    assert [next(items), list(steps)] == [0, [0]]
    assert [next(items), list(steps)] == [1, [0, 1]]
    items.close()


def test_threads_that_come_while_one_waits_are_served_by_one_more(loop):
    """Every thread gets its result; one thread runs the loop, and ends."""
    before, ready = threading.active_count(), threading.Barrier(5)

    async def work(number):
        for _ in range(200):
            await asyncio.sleep(0)
        return number

    def ask(number):
        ready.wait()
        return [loop.run(work(number), CLOSED), *loop.iterate(counted(20, []), CLOSED)]

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(ask, range(5))) == [[number, *range(20)] for number in range(5)]
    for _ in range(200):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before
    assert loop.run(thread_after(1), CLOSED) is threading.current_thread(), "alone again"


def test_a_reply_that_nobody_reads_does_not_hold_up_the_others(loop):
    left = loop.iterate(counted(3, []), CLOSED)
    assert next(left) == 0
    assert loop.run(thread_after(3), CLOSED).name == "fastvlm"
    assert list(left) == [1, 2]


def test_inside_another_event_loop_as_in_a_notebook(loop):
    async def cell():
        return loop.run(thread_after(2), CLOSED), list(loop.iterate(counted(3, []), CLOSED))

    for _ in range(2):
        thread, items = asyncio.run(cell())
        assert thread is not threading.current_thread() and items == [0, 1, 2]


def test_errors_are_raised_where_they_are_waited_for(loop):
    async def broken():
        yield 1
        raise KeyError("broken")

    items = loop.iterate(broken(), CLOSED)
    assert next(items) == 1
    with pytest.raises(KeyError, match="broken"):
        next(items)
    with pytest.raises(KeyError, match="broken"):
        loop.run(anext(broken_at_once()), CLOSED)


async def broken_at_once():
    raise KeyError("broken")
    yield


def test_what_is_left_is_ended_at_once(loop):
    ended = []

    async def endless():
        try:
            while True:
                await asyncio.sleep(0)
                yield 1
        finally:
            ended.append(True)

    items = loop.iterate(endless(), CLOSED)
    next(items)
    items.close()
    assert ended == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handled_between_two_callbacks(loop, hurried, number):
    """A callback of the loop runs to its end; then the wait raises what the handler raises."""
    finished, ended, others = [], [], []

    async def interrupted():
        others.append(asyncio.ensure_future(forever(ended)))
        os.kill(os.getpid(), number)
        finished.append(sum(range(100_000)))
        await asyncio.sleep(60)

    def leave(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(interrupted(), CLOSED)
        assert finished and hurried and signal.getsignal(number) is leave
        assert loop.run(thread_after(1), CLOSED) is threading.current_thread(), "it can be used again"
        assert not ended, "other work goes on"
    finally:
        signal.signal(number, before)
    others[0].cancel()


def test_a_second_signal_is_handled_at_once(loop):
    reached = []

    async def stuck():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # two signals that wait to be handled would be one
        signal.raise_signal(signal.SIGINT)
        for _ in range(1000):
            time.sleep(0.001)
        reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        loop.run(stuck(), CLOSED)
    assert not reached


def test_a_handler_that_returns_changes_nothing(loop):
    seen = []

    async def noisy():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.001)
        return "whole"

    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        assert loop.run(noisy(), CLOSED) == "whole"
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 3


def test_closing_ends_what_others_wait_for():
    loop, ended = CallerLoop(lambda: None), []
    running = threading.Event()
    stop = asyncio.Event()

    async def waiting():
        running.set()
        await stop.wait()
        return "ended"

    async def end():
        stop.set()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(loop.run, waiting(), CLOSED) for _ in range(2)]
        running.wait()
        loop.close(end())
        assert [result.result(10) for result in results] == ["ended"] * 2
    loop.close(end())
    for ask in (lambda: loop.run(forever(ended), CLOSED), lambda: next(loop.iterate(counted(1, []), CLOSED))):
        with pytest.raises(ValueError, match="closed"):
            ask()
