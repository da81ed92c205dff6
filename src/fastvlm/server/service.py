"""The server's state, from opening the model to stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Literal

from fastvlm.engine.engine import Engine
from fastvlm.engine.structured_output import GrammarCompiler
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import UsageError
from fastvlm.images import ImageLimits
from fastvlm.images.pool import ImagePool
from fastvlm.images.signatures import check_installed
from fastvlm.server.context import ServerContext
from fastvlm.server.http.connections import UploadSlots
from fastvlm.server.http.remote_images import RemoteImages
from fastvlm.server.metrics import Metrics
from fastvlm.server.openai.logprobs import LogprobFormatter
from fastvlm.server.replicas import Replicas
from fastvlm.server.settings import ServeSettings
from fastvlm.server.text_limits import TextLimits

OpenEngines = Callable[[], Mapping[str, Sequence[Engine]]]
Status = Literal["starting", "warming up", "ready", "stopping", "failed"]

# A black image and a question run the encoder, prefill and the decoder once.
_WARM_UP = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": b"P5 1 1 255\n\x00"},  # a PGM of one black pixel
            {"type": "text", "text": "?"},
        ],
    }
]
_WARM_UP_PARAMS = SamplingParams(max_new_tokens=4)


class Service:
    """The server's status, and its :class:`ServerContext` once the model is open.

    Args:
        settings: of the server.
        open_engines: opens the model, in a thread of its own: by model name one engine per replica, all with the same
            tokenizer.
    """

    def __init__(self, settings: ServeSettings, open_engines: OpenEngines) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.status: Status = "starting"
        self.failure: Exception | None = None
        self.on_ready: Callable[[], None] = lambda: None  # called once, when requests begin to be answered
        self.on_failure: Callable[[], None] = lambda: None  # called if the model could not be opened
        self.started_at = int(time.time())
        self.context: ServerContext | None = None
        self.upload_slots = UploadSlots(settings.max_receiving)
        self._open_engines = open_engines
        self._image_pool = ImagePool(
            settings.image_workers, timeout_s=settings.image_timeout_s, memory_bytes=settings.image_memory_bytes
        )

    @property
    def is_ready(self) -> bool:
        """True while requests are answered."""
        return self.status == "ready"

    async def start(self) -> None:
        """Open the model and generate one reply with each engine. An exception is kept in `failure`."""
        try:
            for kind in self.settings.accepts:
                check_installed(kind)
            await asyncio.to_thread(self._image_pool.start)
            engines = await asyncio.to_thread(self._open_engines)
            context = await asyncio.to_thread(self._make_context, engines)
            for replicas in context.models.values():
                await replicas.open()
            self.context = context
            self._set_status("warming up")
            for replica in chain.from_iterable(replicas.all for replicas in context.models.values()):
                await replica.async_engine.generate(_WARM_UP, _WARM_UP_PARAMS)
            self.metrics.watch({name: replicas.all for name, replicas in context.models.items()})
            self._set_status("ready")
            if self.is_ready:
                self.on_ready()
        except Exception as error:  # noqa: BLE001 - raised by the caller of `process.serve`
            self.status, self.failure = "failed", error
            self.on_failure()

    def _set_status(self, status: Status) -> None:
        if self.status != "stopping":
            self.status = status

    def _make_context(self, engines: Mapping[str, Sequence[Engine]]) -> ServerContext:
        settings, engine = self.settings, next(iter(engines.values()))[0]
        limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        for one in chain.from_iterable(engines.values()):
            height, width = one.processor.image_processor.image_size
            if limits.max_pixels < height * width:
                raise UsageError(
                    f"max_image_pixels is {limits.max_pixels}; expected at least {height * width}, the {height} x "
                    f"{width} pixels of this model's own images."
                )
            one.processor.image_processor.image_limits = limits
        tokenizer, end_ids = engine.processor.tokenizer, sorted(engine.config.stop_token_ids)
        grammars = GrammarCompiler(tokenizer, engine.config.text_config.vocab_size, end_ids)
        max_prompt_tokens = min(engine.context - 1, settings.max_prompt_tokens or engine.context)
        return ServerContext(
            settings=settings,
            models={name: Replicas(several, self._image_pool) for name, several in engines.items()},
            grammars=grammars,
            logprobs=LogprobFormatter(grammars.tokens, tokenizer, end_ids),
            remote_images=RemoteImages(
                settings.remote_hosts, max_bytes=settings.max_image_bytes, timeout_s=settings.remote_timeout_s
            ),
            metrics=self.metrics,
            tokenizer=tokenizer,
            text_limits=TextLimits(grammars.tokens, tokenizer, max_prompt_tokens),
        )

    def stop(self) -> None:
        """Refuse new requests; running ones continue."""
        self.status = "stopping"

    async def close(self) -> None:
        """Stop, and end running requests."""
        self.stop()
        await asyncio.to_thread(self._image_pool.close)
        if self.context is not None:
            for replicas in self.context.models.values():
                await replicas.close()
            self.context.parser.shutdown(wait=False)
