"""Asyncio interface of the engine: many coroutines share one `Engine`.

Engine steps run in one worker thread, or in the event loop's; prompts are prepared in another one. Submissions and
cancellations run between two steps in the event loop's thread, so no lock is needed. Each listener has its own queue,
which holds its whole reply (at most `max_new_tokens` events), so a slow listener delays no other. The number of
admitted requests is bounded; further ones wait or raise EngineBusyError.
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
from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.sampling import TokenGuide
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.errors import EngineBusyError, UsageError
from fastvlm.images.pool import ImagePool
from fastvlm.processing.image_processor import ImageProcessor

_ROUNDS = 4  # of the event loop between two inline steps: listeners get their events, stop the loop, or are cancelled


@dataclass(eq=False)
class _Listener:
    """A request and the queue of its events."""

    prompt: PromptInputs
    params: SamplingParams | None
    guide: TokenGuide | None
    events: asyncio.Queue[TokenEvent | Exception] = field(default_factory=asyncio.Queue)
    request_id: int | None = None


class AsyncEngine:
    """An engine for coroutines; use it as ``async with AsyncEngine(engine) as async_engine``.

    Args:
        engine: used exclusively by this object. At most `num_slots` + `max_waiting` requests are admitted.
        image_pool: decodes images given as bytes in its own processes; the caller closes it. Without a pool, images are
            decoded one by one in the preparation thread.
        is_inline: run steps in the event loop's thread, and prepare a prompt there while no other request runs; for a
            loop that has nothing else to do.
    """

    def __init__(self, engine: Engine, *, image_pool: ImagePool | None = None, is_inline: bool = False) -> None:
        self.engine, self._image_pool, self._is_inline = engine, image_pool, is_inline
        self._num_preparing = 0
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
        """Finish the current step, end all requests (their listeners get a UsageError) and stop the threads."""
        if not self._is_open:
            return
        self._is_open = False
        self._has_news.set()
        if self._driver is not None:
            await self._driver
        self._run_commands()
        self._fail_all(_closed())
        for executor in (self._preparer, self._stepper):
            await asyncio.to_thread(executor.shutdown)

    async def prepare(
        self, prompt: Any, client: str = "", image_processor: ImageProcessor | None = None
    ) -> PromptInputs:
        """Run :meth:`Engine.prepare` in the preparation thread; the result may be streamed several times.

        Args:
            prompt: as for :meth:`Engine.prepare`.
            client: identifies the client: the image pool serves clients in rotation.
            image_processor: prepares the images of messages; None for the engine's own.
        """
        self._refuse_if_closed()
        ready, loop = None, asyncio.get_running_loop()
        if self._image_pool is not None and (contents := encoded_images(prompt)):
            images = image_processor or self.engine.processor.image_processor
            known = partial(self._known_images, images)
            ready = await decode_images(contents, images, self._image_pool, known, client)
            self._refuse_if_closed()
        if self._is_inline and not self.engine.has_work and not self._num_preparing:
            return self.engine.prepare(prompt, ready, image_processor)
        self._num_preparing += 1
        try:
            return await loop.run_in_executor(self._preparer, self.engine.prepare, prompt, ready, image_processor)
        finally:
            self._num_preparing -= 1

    async def _known_images(self, images: ImageProcessor, contents: Iterable[bytes]) -> Mapping[bytes, Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparer, self.engine.known_images, contents, images)

    async def stream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        guide: TokenGuide | None = None,
        is_patient: bool = True,
    ) -> AsyncGenerator[TokenEvent]:
        """Yield the events of one request. Closing the generator or cancelling its task frees the slot within a step.

        Args:
            prompt, params, guide: as for :meth:`Engine.submit`.
            is_patient: wait while the engine is full instead of raising.

        Raises:
            EngineBusyError: the engine is full and `is_patient` is False.
            UsageError: this AsyncEngine is closed.
            ContextLengthError, PromptError, ...: as :meth:`Engine.submit`, and the error of a request that fails later.
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
        """Return the whole reply; raises what :meth:`stream` raises."""
        completion: Completion | None = None
        async with aclosing(self.stream(prompt, params, guide=guide, is_patient=is_patient)) as events:
            async for event in events:
                completion = event.completion
        assert completion is not None  # noqa: S101 - the last event has it
        return completion

    def forget(self) -> None:
        """Run :meth:`Engine.forget` before the next step."""
        self._command(self.engine.forget)

    def _refuse_if_closed(self) -> None:
        if not self._is_open:
            raise _closed()

    def _command(self, command: Callable[[], None]) -> None:
        """Run `command` before the next step, while no other thread uses the engine."""
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
        """End the request if it is still running."""
        if listener.request_id is not None:
            self._listeners.pop(listener.request_id, None)
            self.engine.cancel(listener.request_id)

    def _run_commands(self) -> None:
        commands, self._commands = self._commands, []
        for command in commands:
            command()

    async def _drive(self) -> None:
        """Run engine steps while there is work; wait otherwise."""
        while self._is_open:
            self._run_commands()
            if not self.engine.has_work:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            try:
                events = await self._step()
            except Exception as error:  # noqa: BLE001 - e.g. out of memory: all listeners raise it; later requests may work
                self._fail_all(error)
                continue
            for event in events:
                listener = self._listeners.get(event.request_id)
                if listener is not None:
                    listener.events.put_nowait(event)
            if self._is_inline:
                for _ in range(_ROUNDS):
                    await asyncio.sleep(0)

    async def _step(self) -> list[TokenEvent]:
        if self._is_inline:
            return self.engine.step()
        return await asyncio.get_running_loop().run_in_executor(self._stepper, self.engine.step)

    def _fail_all(self, error: Exception) -> None:
        listeners, self._listeners = self._listeners, {}
        for request_id, listener in listeners.items():
            self.engine.cancel(request_id)
            listener.events.put_nowait(error)


def _closed() -> UsageError:
    return UsageError("This AsyncEngine is closed. Use it inside `async with AsyncEngine(engine) as async_engine:`.")
