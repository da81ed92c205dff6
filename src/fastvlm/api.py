"""``FastVLM``: ask a checkpoint about images, from scripts, threads and coroutines.

    model = FastVLM("mini")
    model.ask("photo.jpg", "What is this?")

:class:`AsyncFastVLM` runs the engine in a thread beside the event loop. :class:`FastVLM` is the same behind an event
loop of its own, so that several threads may ask at the same time and their requests run together.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastvlm.engine.types import Completion, SamplingParams
from fastvlm.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from fastvlm.config import Bits
    from fastvlm.engine.async_engine import AsyncEngine
    from fastvlm.engine.engine import Engine
    from fastvlm.engine.structured_output import GrammarCompiler, GrammarGuide

T = TypeVar("T")
Images = Any  # one source or a sequence of them: path, URL, data URI, bytes, PIL image, array; None for no image
Schema = Mapping[str, Any]
_END = object()


@dataclass(frozen=True)
class _Options:
    """How one question is answered: the system prompt, sampling, and the form of the answer."""

    system: str | None = None
    response_format: Schema | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)

    @classmethod
    def of(cls, system: str | None, response_format: Schema | None, sampling: Mapping[str, Any]) -> _Options:
        """Options from keywords, those of :class:`SamplingParams` among them."""
        unknown = sorted(set(sampling) - set(SamplingParams.__dataclass_fields__))
        if unknown:
            known = ", ".join(("system", "response_format", *SamplingParams.__dataclass_fields__))
            raise UsageError(f"There is no option {unknown[0]!r}. Known are {known}.")
        return cls(system, response_format, SamplingParams(**sampling))


class AsyncFastVLM:
    """A FastVLM for coroutines. Use it as ``async with AsyncFastVLM("mini") as model``, or call :meth:`close`.

    Args:
        model: a folder, ``"owner/repository"`` on the Hub, or ``"mini"`` for the shipped checkpoint.
        device: "cpu", "cuda", "cuda:1", "mps"; None for the first of cuda, mps, cpu that is there.
        dtype: "float32", "bfloat16", "float16"; "auto" for what is fast on the device.
        bits: of the decoder's weights, 16, 8 or 4; fewer than 16 on a CPU only.
        num_slots: requests that are answered at the same time; more wait.
        image_size, image_fit: pixels a side, and "pad", "crop" or "stretch"; None for the checkpoint's own.
        revision: branch, tag or commit on the Hub.
        engine: further settings of :class:`fastvlm.Engine`, such as `context` or `image_cache_bytes`.

    Raises:
        CheckpointError, ConfigError: not a FastVLM checkpoint that can be opened.
        UsageError: a device, dtype or number that does not exist.
    """

    def __init__(
        self,
        model: str = "mini",
        *,
        device: str | None = None,
        dtype: str = "auto",
        bits: Bits = 16,
        num_slots: int = 4,
        image_size: int | tuple[int, int] | None = None,
        image_fit: str | None = None,
        revision: str | None = None,
        **engine: Any,
    ) -> None:
        from fastvlm.backends.devices import pick_device  # noqa: PLC0415  # imports torch
        from fastvlm.backends.local import compute_dtype  # noqa: PLC0415
        from fastvlm.engine.engine import Engine  # noqa: PLC0415
        from fastvlm.opening import open_checkpoint  # noqa: PLC0415

        where = pick_device(device)
        kind = compute_dtype(dtype, where)
        checkpoint = open_checkpoint(model, revision=revision, device=where, dtype=kind)
        checkpoint.processor.image_processor.choose(image_size, image_fit)
        self.engine: Engine = Engine.from_checkpoint(
            checkpoint, device=where, dtype=kind, bits=bits, num_slots=num_slots, **engine
        )
        self._opened: AsyncEngine | None = None
        self._grammars: GrammarCompiler | None = None
        self._end_ids = sorted(checkpoint.stop_token_ids)

    async def __aenter__(self) -> AsyncFastVLM:
        await self._async_engine()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is running; its askers get a UsageError."""
        if self._opened is not None:
            await self._opened.close()

    async def ask(
        self,
        images: Images,
        question: str,
        *,
        system: str | None = None,
        response_format: Schema | None = None,
        **sampling: Any,
    ) -> str:
        """The answer to one question about images.

        Args:
            images: a path, URL, data URI, bytes, PIL image or array; a list of several; None for no image.
            question: the text.
            system: system prompt; None for the model's default.
            response_format: a JSON schema that the answer follows token by token, or OpenAI's ``{"type":
                "json_schema", ...}`` or ``{"type": "json_object"}``; the answer is then JSON.
            sampling: as :class:`fastvlm.SamplingParams`: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop`, ...

        Raises:
            ImageError: an image that cannot be opened.
            PromptError, ContextLengthError: a question that cannot be asked, or is too long.
            UsageError: an unknown option; SchemaError: a schema that cannot be enforced.
        """
        options = _Options.of(system, response_format, sampling)
        return (await self.complete([_user(images, question)], options)).text

    async def stream(
        self,
        images: Images,
        question: str,
        *,
        system: str | None = None,
        response_format: Schema | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[str]:
        """The answer in pieces of text; arguments and errors as in :meth:`ask`. Leaving the loop ends the request."""
        options = _Options.of(system, response_format, sampling)
        async with aclosing(self.pieces([_user(images, question)], options)) as pieces:
            async for piece in pieces:
                yield piece

    async def batch(
        self,
        questions: Iterable[tuple[Images, str]],
        *,
        system: str | None = None,
        response_format: Schema | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Answers to many questions, in their order; as many run together as there are slots.

        Args:
            questions: (images, question) each, as in :meth:`ask`.

        Raises:
            FastVlmError: the first error; the other requests are ended.
        """
        options = _Options.of(system, response_format, sampling)
        asked = [_user(images, question) for images, question in questions]
        tasks = [asyncio.ensure_future(self.complete([turn], options)) for turn in asked]
        try:
            return [completion.text for completion in await asyncio.gather(*tasks)]
        finally:
            for task in tasks:
                task.cancel()

    def chat(self, *, system: str | None = None, **sampling: Any) -> AsyncChat:
        """A conversation; see :class:`AsyncChat`. `sampling` holds for all of its answers."""
        return AsyncChat(self, _Options.of(system, None, sampling))

    async def complete(self, turns: Sequence[Mapping[str, Any]], options: _Options) -> Completion:
        """The whole answer to the last of `turns`."""
        engine, guide = await self._async_engine(), await self._guide(options.response_format)
        return await engine.generate(_messages(turns, options), options.sampling, guide=guide)

    async def pieces(self, turns: Sequence[Mapping[str, Any]], options: _Options) -> AsyncGenerator[str]:
        """The same as pieces of text."""
        engine, guide = await self._async_engine(), await self._guide(options.response_format)
        async with aclosing(engine.stream(_messages(turns, options), options.sampling, guide=guide)) as events:
            async for event in events:
                if event.text:
                    yield event.text

    async def _async_engine(self) -> AsyncEngine:
        from fastvlm.engine.async_engine import AsyncEngine  # noqa: PLC0415

        if self._opened is None:
            self._opened = AsyncEngine(self.engine)
            await self._opened.__aenter__()
        return self._opened

    async def _guide(self, response_format: Schema | None) -> GrammarGuide | None:
        schema = _schema(response_format)
        if schema is None:
            return None
        if self._grammars is None:
            self._grammars = await asyncio.to_thread(self._compiler)
        return await asyncio.to_thread(self._grammars.compile, schema)

    def _compiler(self) -> GrammarCompiler:
        try:
            from fastvlm.engine.structured_output import GrammarCompiler  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingExtraError("llguidance", "serve", "response_format") from error
        vocab_size = self.engine.config.text_config.vocab_size
        return GrammarCompiler(self.engine.processor.tokenizer, vocab_size, self._end_ids)


class AsyncChat:
    """A conversation: each question sees the ones before. Images and text that were computed are not computed again.

    Attributes:
        messages: the turns so far, as :meth:`FastVlmProcessor.apply_chat_template` takes them.
    """

    def __init__(self, model: AsyncFastVLM, options: _Options) -> None:
        self.messages: list[dict[str, Any]] = []
        self._model, self._options = model, options

    async def ask(self, question: str, images: Images = None) -> str:
        """The answer; `images` are shown with this question and stay in the conversation."""
        turn = _user(images, question)
        answer = (await self._model.complete([*self.messages, turn], self._options)).text
        self.messages += [turn, _assistant(answer)]
        return answer

    async def stream(self, question: str, images: Images = None) -> AsyncGenerator[str]:
        """The answer in pieces; the turn is kept when all of them have come."""
        turn, answer = _user(images, question), []
        async with aclosing(self._model.pieces([*self.messages, turn], self._options)) as pieces:
            async for piece in pieces:
                answer.append(piece)
                yield piece
        self.messages += [turn, _assistant("".join(answer))]


class FastVLM:
    """A FastVLM for scripts and threads: arguments, methods and errors as those of :class:`AsyncFastVLM`.

    Several threads may ask at the same time: their requests run together.

        with FastVLM("mini") as model:
            print(model.ask("photo.jpg", "What is this?"))
    """

    def __init__(self, model: str = "mini", **settings: Any) -> None:
        self._model = AsyncFastVLM(model, **settings)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="fastvlm", daemon=True)
        thread.start()
        self._stop = weakref.finalize(self, _stop, self._model, self._loop, thread)

    def __enter__(self) -> FastVLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The engine; only this object may step it."""
        return self._model.engine

    def close(self) -> None:
        """End what is running, and the threads. A closed model answers nothing."""
        self._stop()

    def ask(self, images: Images, question: str, **options: Any) -> str:
        """The answer to one question about images; see :meth:`AsyncFastVLM.ask`."""
        return self._run(self._model.ask(images, question, **options))

    def stream(self, images: Images, question: str, **options: Any) -> Iterator[str]:
        """The answer in pieces of text; see :meth:`AsyncFastVLM.stream`."""
        return self._pieces(self._model.stream(images, question, **options))

    def batch(self, questions: Iterable[tuple[Images, str]], **options: Any) -> list[str]:
        """Answers to many questions, in their order; see :meth:`AsyncFastVLM.batch`."""
        return self._run(self._model.batch(questions, **options))

    def chat(self, *, system: str | None = None, **sampling: Any) -> Chat:
        """A conversation; see :class:`AsyncChat`."""
        return Chat(self, self._model.chat(system=system, **sampling))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._stop.alive:
            work.close()
            raise UsageError("This FastVLM is closed. Make a new one.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C too: the request must not go on
            future.cancel()
            raise

    def _pieces(self, source: AsyncGenerator[str]) -> Iterator[str]:
        pieces: queue.SimpleQueue[object] = queue.SimpleQueue()
        if not self._stop.alive:
            raise UsageError("This FastVLM is closed. Make a new one.")
        future = asyncio.run_coroutine_threadsafe(_forward(source, pieces), self._loop)
        try:
            while (piece := pieces.get()) is not _END:
                yield cast("str", piece)
            future.result()
        finally:
            future.cancel()


class Chat:
    """A conversation of a :class:`FastVLM`; see :class:`AsyncChat`."""

    def __init__(self, model: FastVLM, chat: AsyncChat) -> None:
        self._model, self._chat = model, chat

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The turns so far."""
        return self._chat.messages

    def ask(self, question: str, images: Images = None) -> str:
        """The answer; `images` are shown with this question and stay in the conversation."""
        return self._model._run(self._chat.ask(question, images))

    def stream(self, question: str, images: Images = None) -> Iterator[str]:
        """The answer in pieces; the turn is kept when all of them have come."""
        return self._model._pieces(self._chat.stream(question, images))


async def _forward(source: AsyncGenerator[str], pieces: queue.SimpleQueue[object]) -> None:
    """Put what `source` gives into `pieces`, then the end, whatever happens."""
    try:
        async with aclosing(source) as opened:
            async for piece in opened:
                pieces.put(piece)
    finally:
        pieces.put(_END)


def _stop(model: AsyncFastVLM, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def close() -> None:
        await model.close()
        await loop.shutdown_default_executor()

    asyncio.run_coroutine_threadsafe(close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _user(images: Images, question: object) -> dict[str, Any]:
    """A user's turn: the images, then the question."""
    if not isinstance(question, str):
        raise UsageError(f"question is {type(question).__name__}; expected a text. Call ask(images, question).")
    several = images if isinstance(images, (list, tuple)) else [] if images is None else [images]
    items: list[dict[str, Any]] = [{"type": "image", "image": image} for image in several]
    return {"role": "user", "content": [*items, {"type": "text", "text": question}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _messages(turns: Sequence[Mapping[str, Any]], options: _Options) -> list[Mapping[str, Any]]:
    system = options.system
    first = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*first, *turns]


def _schema(response_format: object) -> Schema | None:
    """The JSON schema that `response_format` asks for; None for free text."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        kind = type(response_format).__name__
        raise UsageError(f"response_format is {kind}; expected a JSON schema, or OpenAI's response_format, as a dict.")
    wanted = response_format.get("type")
    if wanted == "text":
        return None
    if wanted == "json_object":
        return {"type": "object"}
    if wanted != "json_schema":
        return response_format
    schema = (response_format.get("json_schema") or {}).get("schema")
    if not isinstance(schema, Mapping):
        raise UsageError("response_format has no json_schema.schema; expected a JSON schema there.")
    return schema
