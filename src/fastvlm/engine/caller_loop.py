"""An event loop without a thread of its own: the thread that waits for a result runs it.

Handing each token from one thread to another costs about a millisecond, and a second thread of PyTorch has a second
team of OpenMP threads. So while one thread alone uses the loop, it runs it. If others come, or if the caller already
runs an event loop (as in a notebook), a background thread runs it until nobody waits any more.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Job(Generic[T]):
    """A coroutine on the loop."""

    task: asyncio.Task[T] | None = None  # None until the loop has begun it

    def is_done(self) -> bool:
        """True if it has a result."""
        return self.task is not None and self.task.done()

    def result(self) -> T:
        """Its result; raises its exception."""
        assert self.task is not None  # noqa: S101 - it is done
        return self.task.result()


class CallerLoop:
    """Runs coroutines for threads that wait for them.

    A signal whose handler is a Python function, such as that of Ctrl-C, is handled between two callbacks of the loop,
    so that it interrupts no step of an engine; a second one is handled at once.

    Args:
        hurry: called in the signal handler: whatever runs on the loop should soon return to it.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry, self._loop = hurry, asyncio.new_event_loop()
        self._changed = threading.Condition()  # guards what follows
        self._is_running = self._is_closed = False
        self._num_users = 0
        self._background: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T], closed: Exception) -> T:
        """The result of `work`; raises `closed` after :meth:`close`. An exception while waiting cancels it."""
        try:
            self._enter(closed)
        except BaseException:
            work.close()
            raise
        try:
            with self._job(work) as job:
                self._wait(job.is_done)
                return job.result()
        finally:
            self._leave()

    def iterate(self, source: AsyncGenerator[T], closed: Exception) -> Generator[T]:
        """The items of `source`; it runs ahead while other threads run the loop. Closing the generator closes it."""
        items: deque[T] = deque()

        async def forward() -> None:
            async with aclosing(source) as opened:
                async for item in opened:
                    items.append(item)
                    self._notify()

        self._enter(closed)
        try:
            with self._job(forward()) as job:
                while True:
                    self._wait(lambda: bool(items) or job.is_done())
                    if not items:
                        break
                    yield items.popleft()
                job.result()
        finally:
            self._leave()

    def close(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which ends all other coroutines, then close the loop. Only the first call has an effect."""

        async def end() -> None:
            await work
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others)
            await self._loop.shutdown_default_executor()

        with self._changed:
            if self._is_closed:
                work.close()
                return
            self._is_closed = True
        job = self._begin(end())
        self._wait(job.is_done)
        if self._background is not None and self._background is not threading.current_thread():
            self._background.join()
        self._loop.close()
        job.result()

    def _enter(self, closed: Exception) -> None:
        """Count a user; the second one, or one inside another event loop, starts the background thread."""
        with self._changed:
            if self._is_closed:
                raise closed
            self._num_users += 1
            if self._background is None and (self._num_users > 1 or _is_inside_a_loop()):
                self._background = threading.Thread(target=self._run_in_background, name="fastvlm", daemon=True)
                self._background.start()

    def _leave(self) -> None:
        with self._changed:
            self._num_users -= 1
            if self._background is not None and not self._num_users:
                self._call(self._loop.stop)

    def _run_in_background(self) -> None:
        self._wait(lambda: not self._num_users, is_background=True)
        with self._changed:
            self._background = None
            self._changed.notify_all()

    @contextmanager
    def _job(self, work: Coroutine[Any, Any, T]) -> Iterator[_Job[T]]:
        """`work` on the loop; it is cancelled at the end if it still runs."""
        job = self._begin(work)
        try:
            yield job
        finally:
            if not job.is_done():
                self._call(lambda: job.task and job.task.cancel())
                with self._changed:
                    is_running = self._is_running or self._background is not None
                if not is_running:  # else the thread that runs the loop sees to it
                    self._wait(job.is_done)

    def _begin(self, work: Coroutine[Any, Any, T]) -> _Job[T]:
        job = _Job[T]()

        def begin() -> None:
            job.task = self._loop.create_task(work)
            job.task.add_done_callback(end)

        def end(task: asyncio.Task[T]) -> None:
            _ = task.cancelled() or task.exception()  # so that asyncio does not log what nobody waits for any more
            self._notify()

        self._call(begin)
        return job

    def _call(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: everything on it has ended
            self._loop.call_soon_threadsafe(callback)

    def _notify(self) -> None:
        """In the loop's thread: let all that wait look whether they have their result."""
        self._loop.stop()
        with self._changed:
            self._changed.notify_all()

    def _wait(self, until: Callable[[], bool], *, is_background: bool = False) -> None:
        """Wait for `until`, which changes only on the loop; run the loop if no other thread does."""
        with self._changed:
            while not until() and (self._is_running or (self._background is not None and not is_background)):
                self._changed.wait()
            if until():
                return
            self._is_running = True
        try:
            while not until():
                self._run_until_stopped(until)
        finally:
            with self._changed:
                self._is_running = False
                self._changed.notify_all()

    def _run_until_stopped(self, until: Callable[[], bool]) -> None:
        """Run the loop until `until` or a signal, whose handler is then called and may raise."""
        caught: list[tuple[Callable[[int, FrameType | None], Any], int, FrameType | None]] = []
        handlers = _python_handlers()

        def note(number: int, frame: FrameType | None) -> None:
            if caught:
                handlers[number](number, frame)
            caught.append((handlers[number], number, frame))
            self._hurry()
            self._loop.call_soon_threadsafe(self._loop.stop)

        for number in handlers:
            signal.signal(number, note)
        try:
            while not until() and not caught:
                self._loop.run_forever()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for handler, number, frame in caught:
            handler(number, frame)


def _python_handlers() -> dict[int, Callable[[int, FrameType | None], Any]]:
    """Signal -> its handler, of those that are Python functions; none outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if callable(handler)}


def _is_inside_a_loop() -> bool:
    """True in a thread that runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
