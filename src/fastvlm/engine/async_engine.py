"""The door for servers: many coroutines ask one engine.

Steps run in one worker thread, one after the other; images and messages are made ready in a second one meanwhile.
Requests and cancellations are obeyed between two steps, in the event loop's own thread, so nothing needs a lock. Each
listener has a queue of its own that can take its whole reply: a slow one delays nobody, and costs at most its
`max_new_tokens` events. How many requests are let in is bounded; the others wait outside or are told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from fastvlm.engine.engine import Engine
from fastvlm.engine.image_decoding import decode_images, encoded_images
from fastvlm.engine.prompt_inputs import PreparedPrompt
from fastvlm.engine.sampling import TokenGuide
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.errors import EngineBusyError, UsageError
from fastvlm.images.pool import ImagePool

__all__ = ["AsyncEngine"]


@dataclass(eq=False)
class _Listener:
    """A request and whoever waits for its events."""

    prompt: PreparedPrompt
    params: SamplingParams | None
    guide: TokenGuide | None
    events: asyncio.Queue[TokenEvent | Exception] = field(default_factory=asyncio.Queue)
    request_id: int | None = None


class AsyncEngine:
    """An engine for coroutines; use it as ``async with AsyncEngine(engine) as door``.

    Args:
        engine: nobody else may use it meanwhile. Its `num_slots` and `max_waiting` say how many requests are let in.
        image_pool: decodes images that come as bytes, in processes of its own; it stays open. Without one they are
            decoded in the thread that prepares, one after the other.
    """

    def __init__(self, engine: Engine, *, image_pool: ImagePool | None = None) -> None:
        self.engine, self._image_pool = engine, image_pool
        self._room = asyncio.Semaphore(engine.num_slots + engine.max_waiting)
        self._commands: list[Callable[[], None]] = []
        self._listeners: dict[int, _Listener] = {}
        self._has_news = asyncio.Event()
        self._is_open = False
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="fastvlm-prepare")
        self._stepper = ThreadPoolExecutor(1, thread_name_prefix="fastvlm-step")
        self._driver: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncEngine:
        if self._driver is not None:
            raise UsageError("This AsyncEngine was opened before; make a new one.")
        self._is_open = True
        self._driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the step in progress end, then end all requests: their listeners get a UsageError. Threads are gone."""
        if not self._is_open:
            return
        self._is_open = False
        self._has_news.set()
        if self._driver is not None:
            await self._driver
        self._obey()
        self._fail_all(_closed())
        for executor in (self._preparer, self._stepper):
            await asyncio.to_thread(executor.shutdown)

    # ------------------------------------------------------------------------------------------ asking

    async def prepare(self, prompt: Any, client: str = "") -> PreparedPrompt:
        """:meth:`Engine.prepare` in a thread of its own; the result may be streamed several times.

        Args:
            prompt: as for :meth:`Engine.prepare`.
            client: identifies who asks: the image pool serves clients in rotation.
        """
        self._refuse_if_closed()
        ready = None
        if self._image_pool is not None and (contents := encoded_images(prompt)):
            image_processor = self.engine.processor.image_processor
            ready = await decode_images(contents, image_processor, self._image_pool, self._known_images, client)
            self._refuse_if_closed()
        return await asyncio.get_running_loop().run_in_executor(self._preparer, self.engine.prepare, prompt, ready)

    async def _known_images(self, contents: Iterable[bytes]) -> Mapping[bytes, Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparer, self.engine.known_images, contents)

    async def stream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        guide: TokenGuide | None = None,
        is_patient: bool = True,
    ) -> AsyncGenerator[TokenEvent]:
        """The events of one request, as they come. Who stops listening, or is cancelled, frees the slot within a step.

        Args:
            prompt, params, guide: as for :meth:`Engine.submit`.
            is_patient: wait outside while the engine takes no more requests, instead of raising.

        Raises:
            EngineBusyError: no room, and not `is_patient`.
            UsageError: the door is closed.
            ContextLengthError, PromptError, ...: as :meth:`Engine.submit`; and what fails while the request runs.
        """
        self._refuse_if_closed()
        if self._room.locked() and not is_patient:
            raise EngineBusyError(
                f"{self.engine.num_slots + self.engine.max_waiting} requests are running or waiting, which is the "
                "limit. Try again later, wait with is_patient=True, or give the engine a larger max_waiting."
            )
        async with self._room:
            self._refuse_if_closed()
            prepared = await self.prepare(prompt)
            self._refuse_if_closed()
            listener = _Listener(prepared, params, guide)
            self._command(partial(self._submit, listener))
            try:
                is_over = False
                while not is_over:
                    event = await listener.events.get()
                    error = event if isinstance(event, Exception) else event.error
                    if error is not None:
                        raise error
                    assert isinstance(event, TokenEvent)  # noqa: S101 - exceptions have been raised
                    is_over = event.finish_reason is not None
                    yield event
            finally:
                self._command(partial(self._cancel, listener))

    async def generate(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        guide: TokenGuide | None = None,
        is_patient: bool = True,
    ) -> Completion:
        """A whole reply; raises what :meth:`stream` raises."""
        completion: Completion | None = None
        async with aclosing(self.stream(prompt, params, guide=guide, is_patient=is_patient)) as events:
            async for event in events:
                completion = event.completion
        assert completion is not None  # noqa: S101 - the last event has it
        return completion

    def _refuse_if_closed(self) -> None:
        if not self._is_open:
            raise _closed()

    # ------------------------------------------------------------------------------------------ between two steps

    def _command(self, command: Callable[[], None]) -> None:
        """Have `command` done before the next step; it may use the engine."""
        self._commands.append(command)
        self._has_news.set()

    def _submit(self, listener: _Listener) -> None:
        try:
            listener.request_id = self.engine.submit(listener.prompt, listener.params, guide=listener.guide)
        except Exception as error:  # noqa: BLE001 - the listener raises it
            listener.events.put_nowait(error)
            return
        self._listeners[listener.request_id] = listener

    def _cancel(self, listener: _Listener) -> None:
        """End the request, if it has not ended by itself."""
        if listener.request_id is not None:
            self._listeners.pop(listener.request_id, None)
            self.engine.cancel(listener.request_id)

    def _obey(self) -> None:
        commands, self._commands = self._commands, []
        for command in commands:
            command()

    async def _drive(self) -> None:
        """Step while there is work, sleep while there is none."""
        loop = asyncio.get_running_loop()
        while self._is_open:
            self._obey()
            if not self.engine.has_work:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            try:
                events = await loop.run_in_executor(self._stepper, self.engine.step)
            except Exception as error:  # noqa: BLE001 - out of memory, say: all listeners raise it, new ones may do better
                self._fail_all(error)
                continue
            for event in events:
                listener = self._listeners.get(event.request_id)
                if listener is not None:
                    listener.events.put_nowait(event)

    def _fail_all(self, error: Exception) -> None:
        listeners, self._listeners = self._listeners, {}
        for request_id, listener in listeners.items():
            self.engine.cancel(request_id)
            listener.events.put_nowait(error)


def _closed() -> UsageError:
    return UsageError("The engine's door is closed. Ask inside `async with AsyncEngine(engine) as door:`.")
