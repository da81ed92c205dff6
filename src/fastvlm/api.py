"""``FastVLM``: ask a checkpoint about images, from scripts, threads and coroutines.

    model = FastVLM("mini")
    model.ask("photo.jpg", "What is this?")

:class:`AsyncFastVLM` runs the engine in its own thread. :class:`FastVLM` is the same without coroutines: the engine
runs in the thread that asks. Several threads may ask at the same time: their requests run together.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from fastvlm.engine.types import SamplingParams, TokenEvent
from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.processing.image_items import image_items

if TYPE_CHECKING:
    from fastvlm.config import Bits
    from fastvlm.engine.async_engine import AsyncEngine
    from fastvlm.engine.caller_loop import CallerLoop
    from fastvlm.engine.engine import Engine
    from fastvlm.engine.structured_output import GrammarCompiler, GrammarGuide

T = TypeVar("T")
Images = Any  # one source or a sequence of them: path, URL, data URI, bytes, PIL image, array, frame; None for none
Schema = Mapping[str, Any]


class AsyncFastVLM:
    """A FastVLM for coroutines. Use it as ``async with AsyncFastVLM("mini") as model``, or call :meth:`close`.

    Args:
        model: a folder, ``"owner/repository"`` on the Hub, or ``"mini"`` for the shipped checkpoint.
        device: "cpu", "cuda", "cuda:1", "mps"; None for the first of cuda, mps, cpu that is there.
        dtype: "float32", "bfloat16", "float16"; "auto" for what is fast on the device.
        bits: of the decoder's weights, 16, 8 or 4; fewer than 16 on a CPU only.
        adapter: folder of a LoRA adapter to merge.
        num_slots: requests that are answered at the same time; more wait.
        image_size, image_fit: pixels a side, and "pad", "crop" or "stretch"; None for the checkpoint's own.
        revision: branch, tag or commit on the Hub.
        engine: further settings of :class:`fastvlm.Engine`, such as `context` or `image_cache_bytes`; `runtime="onnx"`
            for a folder of ``fastvlm export``, which is also noticed without it.

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
        adapter: str | None = None,
        num_slots: int = 4,
        image_size: int | tuple[int, int] | None = None,
        image_fit: str | None = None,
        revision: str | None = None,
        **engine: Any,
    ) -> None:
        from fastvlm.opening import open_engine  # noqa: PLC0415  # imports torch

        self.engine: Engine = open_engine(
            model,
            revision=revision,
            device=device,
            dtype=dtype,
            bits=bits,
            adapter=adapter,
            image_size=image_size,
            image_fit=image_fit,
            num_slots=num_slots,
            **engine,
        )
        self._is_inline = False
        self._opened: AsyncEngine | None = None
        self._grammars: GrammarCompiler | None = None

    async def __aenter__(self) -> AsyncFastVLM:
        await self._async_engine()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the running requests with a UsageError."""
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
            images: a path, URL, data URI, bytes, PIL image or array; a list of several, also what
                :func:`fastvlm.open_frames` gives of a PDF or video; None for no image.
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
        messages = [*system_message(system), user_message(images, question)]
        completion = None
        async for event in self.events(messages, response_format=response_format, **sampling):
            completion = event.completion
        assert completion is not None  # noqa: S101 - the last event has it
        return completion.text

    async def stream(
        self, images: Images, question: str, *, system: str | None = None, **options: Any
    ) -> AsyncGenerator[str]:
        """The answer in pieces of text; arguments and errors as in :meth:`ask`. Leaving the loop ends the request."""
        messages = [*system_message(system), user_message(images, question)]
        async with aclosing(self.events(messages, **options)) as events:
            async for event in events:
                if event.text:
                    yield event.text

    async def batch(self, questions: Iterable[tuple[Images, str]], **options: Any) -> list[str]:
        """Answers to many questions, in their order; as many run together as there are slots.

        Args:
            questions: (images, question) each.
            options: as in :meth:`ask`.

        Raises:
            FastVlmError: the first error; the other requests are ended.
        """
        tasks = [asyncio.ensure_future(self.ask(images, question, **options)) for images, question in questions]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def chat(self, *, system: str | None = None, **sampling: Any) -> AsyncChat:
        """A conversation; see :class:`AsyncChat`. `sampling` holds for all of its answers."""
        _sampling_params(sampling)
        return AsyncChat(self, system, sampling)

    async def events(
        self, messages: Sequence[Mapping[str, Any]], *, response_format: Schema | None = None, **sampling: Any
    ) -> AsyncGenerator[TokenEvent]:
        """The answer to the last of `messages`, token by token; the last event has the completion with its timings.

        Args:
            messages: as :meth:`FastVlmProcessor.apply_chat_template` takes them; images may be PIL images.
            response_format, sampling: as in :meth:`ask`, and the same errors.
        """
        params = _sampling_params(sampling)
        engine, guide = await self._async_engine(), await self._guide(response_format)
        async with aclosing(engine.stream(messages, params, guide=guide)) as events:
            async for event in events:
                yield event

    async def forget(self) -> None:
        """Drop what is kept of earlier images and conversations."""
        (await self._async_engine()).forget()

    async def _async_engine(self) -> AsyncEngine:
        from fastvlm.engine.async_engine import AsyncEngine  # noqa: PLC0415

        if self._opened is None:
            self._opened = AsyncEngine(self.engine, is_inline=self._is_inline)
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
        engine = self.engine
        vocab_size, end_ids = engine.config.text_config.vocab_size, sorted(engine.stop_token_ids)
        return GrammarCompiler(engine.processor.tokenizer, vocab_size, end_ids)


class AsyncChat:
    """A conversation: each question sees the ones before. Images and text that were computed are not computed again.

    Attributes:
        messages: the turns so far, as :meth:`FastVlmProcessor.apply_chat_template` takes them.
    """

    def __init__(self, model: AsyncFastVLM, system: str | None, sampling: Mapping[str, Any]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._model, self._system, self._sampling = model, system, sampling

    async def ask(self, question: str, images: Images = None) -> str:
        """The answer; `images` are shown with this question and stay in the conversation."""
        return "".join([piece async for piece in self.stream(question, images)])

    async def stream(self, question: str, images: Images = None) -> AsyncGenerator[str]:
        """The answer in pieces; the turn is kept when all of them have come."""
        turn, answer = user_message(images, question), []
        messages = [*system_message(self._system), *self.messages, turn]
        async with aclosing(self._model.events(messages, **self._sampling)) as events:
            async for event in events:
                if event.text:
                    answer.append(event.text)
                    yield event.text
        self.messages += [turn, assistant_message("".join(answer))]


class FastVLM:
    """A FastVLM for scripts and threads: arguments, methods and errors as those of :class:`AsyncFastVLM`.

    Several threads may ask at the same time: their requests run together.

        with FastVLM("mini") as model:
            print(model.ask("photo.jpg", "What is this?"))
    """

    def __init__(self, model: str = "mini", **settings: Any) -> None:
        from fastvlm.engine.caller_loop import CallerLoop  # noqa: PLC0415

        self._model = AsyncFastVLM(model, **settings)
        self._model._is_inline = True
        self._loop = CallerLoop(self._model.engine.pause)
        self._stop = weakref.finalize(self, _stop, self._model, self._loop)

    def __enter__(self) -> FastVLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The engine; only this object may step it."""
        return self._model.engine

    def close(self) -> None:
        """End the running requests; later calls raise a UsageError."""
        self._stop()

    def ask(self, images: Images, question: str, **options: Any) -> str:
        """The answer to one question about images; see :meth:`AsyncFastVLM.ask`."""
        return self._run(self._model.ask(images, question, **options))

    def stream(self, images: Images, question: str, **options: Any) -> Iterator[str]:
        """The answer in pieces of text; see :meth:`AsyncFastVLM.stream`."""
        return self._iterate(self._model.stream(images, question, **options))

    def batch(self, questions: Iterable[tuple[Images, str]], **options: Any) -> list[str]:
        """Answers to many questions, in their order; see :meth:`AsyncFastVLM.batch`."""
        return self._run(self._model.batch(questions, **options))

    def events(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generator[TokenEvent]:
        """The answer to the last of `messages`, token by token; see :meth:`AsyncFastVLM.events`."""
        return self._iterate(self._model.events(messages, **options))

    def forget(self) -> None:
        """Drop what is kept of earlier images and conversations."""
        self._run(self._model.forget())

    def chat(self, *, system: str | None = None, **sampling: Any) -> Chat:
        """A conversation; see :class:`AsyncChat`."""
        return Chat(self, self._model.chat(system=system, **sampling))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work, _closed())

    def _iterate(self, source: AsyncGenerator[T]) -> Generator[T]:
        return self._loop.iterate(source, _closed())


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
        return self._model._iterate(self._chat.stream(question, images))


def _closed() -> UsageError:
    return UsageError("This FastVLM is closed. Make a new one.")


def _stop(model: AsyncFastVLM, loop: CallerLoop) -> None:
    loop.close(model.close())


def user_message(images: Images, question: object) -> dict[str, Any]:
    """A user's turn: the images, then the question."""
    if not isinstance(question, str):
        raise UsageError(f"question is {type(question).__name__}; expected a text. Call ask(images, question).")
    several = images if isinstance(images, (list, tuple)) else [] if images is None else [images]
    return {"role": "user", "content": [*image_items(several), {"type": "text", "text": question}]}


def assistant_message(text: str) -> dict[str, Any]:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The system prompt as a list of one message; of none for None."""
    return [] if text is None else [{"role": "system", "content": [{"type": "text", "text": text}]}]


def _sampling_params(given: Mapping[str, Any]) -> SamplingParams:
    """Sampling from keywords. Raises UsageError for an unknown one."""
    if unknown := sorted(set(given) - set(SamplingParams.__dataclass_fields__)):
        known = ", ".join(("system", "response_format", *SamplingParams.__dataclass_fields__))
        raise UsageError(f"There is no option {unknown[0]!r}. Known are {known}.")
    return SamplingParams(**given)


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
