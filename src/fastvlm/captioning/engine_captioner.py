"""Captioner on this machine's engine: images are decoded in processes, all slots are kept busy."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastvlm.api import system_message, user_message
from fastvlm.backends.native.openmp import usable_cores
from fastvlm.captioning.rows import Answer, Prompt, Row
from fastvlm.config_limits import dtype_name
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
from fastvlm.formats.checkpoint_digest import checkpoint_digest
from fastvlm.formats.places import checkpoint_path
from fastvlm.images.pool import ImagePool
from fastvlm.opening import open_engine

if TYPE_CHECKING:
    from fastvlm.engine.structured_output import GrammarGuide

ROW_ERRORS = (ImageError, PromptError, ContextLengthError, DataError, NonFiniteError, ImageTokenMismatchError)
NUM_SLOTS = 8  # replies generated together; docs/scale.md has the rates of others
_CORES_PER_DECODER = 4
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
            ready = [await self._prepared(image, prompt) for prompt in prompts]  # the first one decodes
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


def open_captioner(
    model: str = "mini",
    *,
    revision: str | None = None,
    params: SamplingParams | None = None,
    system: str | None = None,
    num_slots: int = NUM_SLOTS,
    num_decoders: int | None = None,
    adapter: str | None = None,
    **settings: Any,
) -> EngineCaptioner:
    """A captioner for a checkpoint, with batch settings for throughput.

    Args:
        model, revision: a checkpoint; see :class:`fastvlm.FastVLM`.
        params, system: see :class:`EngineCaptioner`.
        num_slots: replies that are generated together.
        num_decoders: processes that decode images; None for one for each four cores.
        adapter: folder of a LoRA adapter to merge.
        settings: further ones of :class:`fastvlm.FastVLM`.

    Raises:
        CheckpointError, ConfigError, UsageError: as :class:`fastvlm.FastVLM`.
    """
    folder = checkpoint_path(model, revision=revision)
    # No reply is streamed, so starting requests need not leave time to running ones.
    engine = open_engine(folder, num_slots=num_slots, admission_ratio=math.inf, adapter=adapter, **settings)
    images, backend = engine.processor.image_processor, engine.backend
    identity = {
        "checkpoint": checkpoint_digest(folder),
        "adapter": None if adapter is None else checkpoint_digest(Path(adapter)),
        "image_size": list(images.image_size),
        "image_fit": images.image_fit,
        "dtype": dtype_name(backend.dtype),
        "bits": [settings.get("bits", 16), settings.get("encoder_bits", 16)],
    }
    decoders = max(1, usable_cores() // _CORES_PER_DECODER) if num_decoders is None else num_decoders
    return EngineCaptioner(engine, identity, params, system=system, num_decoders=decoders)


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
