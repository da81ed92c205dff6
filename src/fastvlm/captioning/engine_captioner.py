"""Captioner on this machine's engine: images are decoded in processes, all slots are kept busy."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastvlm.api import system_message, user_message
from fastvlm.captioning.rows import Answer, Prompt, Row
from fastvlm.engine.async_engine import AsyncEngine
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SEEDS, Completion, SamplingParams
from fastvlm.errors import (
    ContextLengthError,
    DataError,
    FastVlmError,
    ImageError,
    ImageTokenMismatchError,
    MissingExtraError,
    NonFiniteError,
    PromptError,
)
from fastvlm.images.pool import ImagePool

if TYPE_CHECKING:
    from fastvlm.engine.structured_output import GrammarGuide

ROW_ERRORS = (ImageError, PromptError, ContextLengthError, DataError, NonFiniteError, ImageTokenMismatchError)
_DECODE_TIMEOUT_S = 60.0  # of one image
_DECODE_MEMORY_BYTES = 2 << 30  # of one decoder


class EngineCaptioner:
    """Answers rows with an engine; see :class:`fastvlm.captioning.rows.Captioner`.

    Args:
        engine: used by this object alone. For throughput make it with ``admission_ratio=math.inf``.
        identity: what tells its answers from another engine's, such as the checkpoint's digest and the image size.
        params: sampling; with a seed, each row's own seed is made of it and the row's id.
        system: system prompt; None for the model's own.
        num_decoders: processes that decode images.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Mapping[str, Any],
        params: SamplingParams | None = None,
        *,
        system: str | None = None,
        num_decoders: int = 1,
    ) -> None:
        self._engine, self._params, self._system = engine, params or SamplingParams(), system
        self._num_decoders = num_decoders
        self.identity: Mapping[str, Any] = {**identity, "system": system, **_sampling(self._params)}
        # Twice the slots, so that a prepared row is there when a slot gets free, and one for each decoder.
        self.num_concurrent = 2 * engine.num_slots + num_decoders
        self._guides: dict[str, GrammarGuide] = {}
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> EngineCaptioner:
        self._room = asyncio.Semaphore(self.num_concurrent)
        pool = ImagePool(self._num_decoders, timeout_s=_DECODE_TIMEOUT_S, memory_bytes=_DECODE_MEMORY_BYTES)
        self._opened.push_async_callback(asyncio.to_thread, pool.close)
        await asyncio.to_thread(pool.start)
        self._async_engine = await self._opened.enter_async_context(AsyncEngine(self._engine, image_pool=pool))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def answer(self, row: Row, image: bytes, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer for each prompt; the image is decoded and encoded once.

        Raises:
            SchemaError: a schema that cannot be enforced; MissingExtraError: without the package for it.
            UsageError: the captioner is closed.
        """
        async with self._room:
            ready = [await self._prepared(image, prompt) for prompt in prompts]  # one after the other: the first decodes
            return list(await asyncio.gather(*map(self._reply, [row] * len(prompts), prompts, ready)))

    async def _prepared(self, image: bytes, prompt: Prompt) -> Any:
        """The prompt's inputs, or the error of a row that has none."""
        messages = [*system_message(self._system), user_message(image, prompt.text)]
        try:
            return await self._async_engine.prepare(messages)
        except ROW_ERRORS as error:
            return error

    async def _reply(self, row: Row, prompt: Prompt, ready: Any) -> Answer:
        if isinstance(ready, FastVlmError):
            return Answer.failed(ready)
        try:
            completion = await self._async_engine.generate(
                ready, self._params_of(row, prompt), guide=self._guide(prompt.schema)
            )
        except ROW_ERRORS as error:
            return Answer.failed(error)
        return _answer(completion)

    def _params_of(self, row: Row, prompt: Prompt) -> SamplingParams:
        """The run's sampling, with a seed that does not depend on the order of the rows."""
        if self._params.seed is None:
            return self._params
        digest = hashlib.sha256(f"{self._params.seed}:{row.id}:{prompt.text}".encode()).digest()
        return replace(self._params, seed=int.from_bytes(digest[:8], "big") % SEEDS)

    def _guide(self, schema: Mapping[str, Any] | None) -> GrammarGuide | None:
        if schema is None:
            return None
        key = repr(schema)
        if key not in self._guides:
            self._guides[key] = self._compiled(schema)
        return self._guides[key].copy()

    def _compiled(self, schema: Mapping[str, Any]) -> GrammarGuide:
        try:
            from fastvlm.engine.structured_output import GrammarCompiler  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingExtraError("llguidance", "serve", "A JSON schema") from error
        engine = self._engine
        vocab_size = engine.config.text_config.vocab_size
        return GrammarCompiler(engine.processor.tokenizer, vocab_size, sorted(engine.stop_token_ids)).compile(schema)


def _answer(completion: Completion) -> Answer:
    return Answer(
        completion.text,
        None,
        completion.finish_reason,
        completion.usage.completion_tokens,
        round(completion.timings.total, 1),
    )


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """The settings of `params` that differ from the defaults."""
    defaults = SamplingParams()
    return {name: value for name, value in vars(params).items() if value != getattr(defaults, name)}
