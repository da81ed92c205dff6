"""Continuous-batching engine: encodes images, prefills, decodes, samples and streams many requests with one model.

`Engine.step` gives each running request its next token, or several if drafted ones hold, then does a slice of the work
of the newest request, so that the others keep generating meanwhile. All work runs in the calling thread; servers use
:class:`fastvlm.AsyncEngine`.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.backends.generators import finished
from fastvlm.backends.local import Kernels, LocalBackend, make_backend
from fastvlm.config import Bits, EncoderBits
from fastvlm.engine import decoding
from fastvlm.engine.drafting import DraftCounts, drafter
from fastvlm.engine.encoder_cache import EncoderCache, encode_images
from fastvlm.engine.pixel_cache import PixelCache, ReadyImages
from fastvlm.engine.prompt_inputs import PromptInputs, check_length, prepare
from fastvlm.engine.sampling import Sampler, TokenGuide
from fastvlm.engine.scheduler import Admission, Scheduler
from fastvlm.engine.sequence import SequenceState
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent, check_lookup
from fastvlm.formats.checkpoint import Checkpoint, HasCheckpoint
from fastvlm.model import finite
from fastvlm.model.joint import join_image_and_text
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor

ADMISSION_RATIO = 4.0  # docs/performance.md, "While others start"
_IMAGE_CACHE_BYTES = 2**28  # 585 images of the 0.5B in bfloat16
_PIXEL_CACHE_BYTES = 2**26  # five images of 1024 px


class Engine:
    """Runs many requests at once on one model, with the same tokens as transformers' `generate`.

    Args:
        checkpoint: gives configuration, processor and end tokens; the weights are in the backend.
        backend: runs the model; its `num_slots` and `context` are the engine's.
        max_waiting: requests that may wait for a slot, in addition to those for which a slot is free.
        admission_ratio: while other requests decode, a new request's images and prompt are computed in slices between
            decoding steps, each about this many times as long as a step. Large values start requests sooner; small
            values keep decoding fast; ``math.inf`` disables slices (highest throughput). Slices need a CPU backend.
        image_cache_bytes: memory for image embeddings, keyed by image content.
        pixel_cache_bytes: memory for preprocessed images, keyed by their encoded bytes.
        prompt_lookup_num_tokens: draft at most this many tokens by prompt lookup, and verify them in one decoding step
            (:mod:`fastvlm.engine.drafting`); None for no lookup. Replies stay the same.
        clock: monotonic clock in seconds.

    Attributes:
        processor: image processor, tokenizer and chat template; can be changed between requests.
        config: the model configuration.
        backend: runs the model.
        draft_counts: drafted and accepted tokens so far.

    Raises:
        UsageError: a value outside its range.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend,
        *,
        max_waiting: int = 64,
        admission_ratio: float = ADMISSION_RATIO,
        image_cache_bytes: int = _IMAGE_CACHE_BYTES,
        pixel_cache_bytes: int = _PIXEL_CACHE_BYTES,
        prompt_lookup_num_tokens: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend, self.processor, self.config = backend, checkpoint.processor, checkpoint.config
        self.stop_token_ids, self._clock = checkpoint.stop_token_ids, clock
        self._scheduler = Scheduler(
            backend.num_slots, max_waiting, admission_ratio=admission_ratio, chunk_tokens=backend.chunk_tokens
        )
        check_lookup(prompt_lookup_num_tokens)
        self.prompt_lookup_num_tokens, self.draft_counts = prompt_lookup_num_tokens, DraftCounts()
        self._encoder_cache, self._pixel_cache = EncoderCache(image_cache_bytes), PixelCache(pixel_cache_bytes)
        self._replies: dict[int, SequenceState] = {}
        self._work: Generator[None, None, Tensor] | None = None  # prefill of the starting request
        self._ids = count(1)
        self._pending_events: list[TokenEvent] = []
        self._must_pause = False
        self._streams: dict[int, deque[TokenEvent]] = {}

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        bits: Bits = 16,
        encoder_bits: EncoderBits = 16,
        num_slots: int = 4,
        context: int | None = None,
        kernels: Kernels = "fast",
        base: Engine | None = None,
        **settings: Any,
    ) -> Engine:
        """Build an engine for `checkpoint` with the fastest kernels for `device`.

        Args:
            checkpoint: as :func:`fastvlm.open_checkpoint` returns it; it can be used afterwards.
            device, dtype, bits, encoder_bits, num_slots, context, kernels: see
                :func:`fastvlm.backends.local.make_backend`.
            base: an engine with the same settings for this or a related checkpoint; equal weights are shared. It may
                run in another thread.
            settings: of :class:`Engine`.
        """
        backend = make_backend(
            checkpoint,
            device=device,
            dtype=dtype,
            bits=bits,
            encoder_bits=encoder_bits,
            num_slots=num_slots,
            context=context,
            kernels=kernels,
            base=base.backend if base is not None and isinstance(base.backend, LocalBackend) else None,
        )
        if base is not None:  # a tokenizer changes during use: one for each thread
            checkpoint = replace(checkpoint, processor=copy.deepcopy(checkpoint.processor))
        return cls(checkpoint, backend, **settings)

    @classmethod
    def from_model(cls, model: HasCheckpoint, processor: Processor, **settings: Any) -> Engine:
        """Build an engine for a live model, as :func:`fastvlm.load` returns it with its processor.

        The model can still be used; delete it if it is not needed, because its weights take memory.

        Args:
            model: a :class:`fastvlm.FastVlmForConditionalGeneration` in eval mode.
            processor: a :class:`fastvlm.FastVlmProcessor`.
            settings: of :meth:`from_checkpoint`.

        Raises:
            UsageError: a model in training mode.
            ConfigError: a decoder other than plain Qwen2.
        """
        return cls.from_checkpoint(model.to_checkpoint(processor), **settings)

    @property
    def num_slots(self) -> int:
        """Requests that run at the same time."""
        return self.backend.num_slots

    @property
    def max_waiting(self) -> int:
        """Requests that may wait for a slot."""
        return self._scheduler.max_waiting

    @property
    def num_running(self) -> int:
        """Requests in slots, including the starting one."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._scheduler.waiting)

    @property
    def context(self) -> int:
        """Maximum tokens of one request, prompt and reply together."""
        return self.backend.context

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of key/value cache that one token takes."""
        return self.backend.kv_bytes_per_token

    @property
    def image_hits(self) -> tuple[int, int]:
        """Images so far: (found in the encoder cache, encoded)."""
        return self._encoder_cache.num_hits, self._encoder_cache.num_misses

    @property
    def has_work(self) -> bool:
        """True if there are unfinished requests or pending events."""
        return bool(self._replies or self._pending_events)

    def prepare(
        self, prompt: Any, ready: ReadyImages | None = None, image_processor: ImageProcessor | None = None
    ) -> PromptInputs:
        """See :func:`fastvlm.engine.prompt_inputs.prepare`.

        Args:
            prompt: messages, or model inputs.
            ready: decoded images by their encoded bytes.
            image_processor: prepares the images of messages; None for the engine's own.
        """
        processor = self.processor if image_processor is None else self.processor.with_images(image_processor)
        return prepare(prompt, processor, self.config, self._pixel_cache, ready)

    def known_images(
        self, contents: Iterable[bytes], image_processor: ImageProcessor | None = None
    ) -> dict[bytes, Tensor]:
        """Cached pixels (3, H, W) of those `contents` (encoded images) that the pixel cache holds."""
        return self._pixel_cache.known(image_processor or self.processor.image_processor, contents)

    def submit(self, prompt: Any, params: SamplingParams | None = None, *, guide: TokenGuide | None = None) -> int:
        """Queue a request and return its id, which its events carry. `guide` restricts the tokens of the reply.

        Raises:
            ContextLengthError: prompt and reply do not fit; nothing has been computed.
            EngineBusyError: too many requests are waiting.
            PromptError, ImageError, ImageTokenMismatchError, UsageError: see :meth:`prepare`.

        If a request fails later, its last event carries the error: NonFiniteError for NaN or infinity.
        """
        params = SamplingParams() if params is None else params
        prepared = self.prepare(prompt)
        check_length(self.config, self.context, len(prepared.token_ids), params.max_new_tokens)
        request_id = next(self._ids)
        self._scheduler.submit(request_id, prepared.keys)
        self._replies[request_id] = SequenceState(
            request_id,
            prepared,
            params,
            Sampler(params, prepared.token_ids, self.backend.device, guide),
            decode=lambda token_ids: self.processor.decode(token_ids, skip_special_tokens=True),
            stop_ids=self.stop_token_ids,
            drafter=drafter(prepared.token_ids, guide, self.prompt_lookup_num_tokens, self.draft_counts),
            clock=self._clock,
        )
        return request_id

    def cancel(self, request_id: int) -> bool:
        """End a request and free its slot; the next step returns its last event. False if it is not running."""
        reply = self._replies.get(request_id)
        if reply is None:
            return False
        self._end(request_id)
        self._pending_events.append(reply.aborted())
        return True

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> Generator[TokenEvent]:
        """Submit a request at the first `next` and step until it ends; other requests advance too.

        Closing the generator cancels the request. Raises what :meth:`submit` raises, and the error of a failed request.
        """
        request_id = self.submit(prompt, params)
        events = self._streams[request_id] = deque()
        try:
            while True:
                while not events:
                    self.step()
                event = events.popleft()
                if event.error is not None:
                    raise event.error
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            del self._streams[request_id]
            self.cancel(request_id)

    def generate(self, prompt: Any, params: SamplingParams | None = None) -> Completion:
        """Return the whole reply; raises what :meth:`stream` raises."""
        *_, last = self.stream(prompt, params)
        assert last.completion is not None  # noqa: S101 - the last event has it
        return last.completion

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W) in [0, 1], without the cache."""
        return finished(self.backend.encode(pixel_values))

    def forget(self) -> None:
        """Clear the image caches and the reusable prefixes of earlier requests."""
        self._encoder_cache.clear()
        self._pixel_cache.clear()
        self._scheduler.forget()

    def pause(self) -> None:
        """End the running step, or the next one, as soon as its slice of prefill can pause; from any thread."""
        self._must_pause = True

    def step(self) -> list[TokenEvent]:
        """Generate the next token of each running request, then do a slice of the starting request's prefill.

        If drafted tokens hold, a request gets several tokens. If no other request runs, the starting one is prefilled
        completely and gets its first token.

        Returns:
            One event for each token of this step, and the last events of requests that were cancelled before it.

        Raises:
            CheckpointError: the weights are mapped from a file that has changed.
        """
        if self._replies:
            self.backend.check_weights()
        events, self._pending_events = self._pending_events, []
        begun_s = self._clock()
        running = [self._replies[request_id] for request_id in self._scheduler.decoding]
        if running:
            events += self._sample(*decoding.decode(self.backend, running))
        events += self._start(self._clock() - begun_s)
        for event in events:
            if event.request_id in self._streams:
                self._streams[event.request_id].append(event)
        return events

    def _sample(self, runs: Sequence[decoding.Run], logits: Tensor) -> list[TokenEvent]:
        """Sample the next tokens of each run from its rows of `logits` (B, V)."""
        events = []
        for run, of_run in zip(runs, decoding.sample(runs, logits), strict=True):
            num_sampled = sum(event.token_id is not None for event in of_run)
            # The cache holds rejected tokens after these; nothing attends to them before they are overwritten.
            self._scheduler.computed(run.reply.request_id, run.token_ids[:num_sampled])
            if of_run[-1].finish_reason is not None:
                self._end(run.reply.request_id)
            events += of_run
        return events

    def _start(self, step_s: float) -> list[TokenEvent]:
        """Do a slice of the starting request's prefill; sample its first token after the last slice.

        `step_s` is the duration of the preceding decoding step in seconds. An error here ends this request only.
        """
        admission = self._scheduler.admit()
        if admission is not None:
            self._work = self._prefill(self._replies[admission.request_id], admission)
        if self._scheduler.starting is None or self._work is None:
            return []
        reply = self._replies[self._scheduler.starting]
        try:
            logits = self._slice(self._work, step_s)
            if logits is None:
                return []
            self._scheduler.started()
            return self._sample([decoding.Run(reply)], logits[None])
        except Exception as error:  # noqa: BLE001 - the other requests go on; this one's listener raises it
            self._end(reply.request_id)
            return [reply.aborted(error)]

    def _slice(self, work: Generator[None, None, Tensor], step_s: float) -> Tensor | None:
        """Advance `work` until the scheduler pauses it (None) or it ends (its logits (V,))."""
        begun_s = now_s = self._clock()
        try:
            while True:
                next(work)
                before_s, now_s = now_s, self._clock()
                if self._must_pause or self._scheduler.must_pause(now_s - begun_s, now_s - before_s, step_s):
                    self._must_pause = False
                    return None
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _prefill(self, reply: SequenceState, admission: Admission) -> Generator[None, None, Tensor]:
        """Prefill the prompt beyond its cached prefix; return the logits (V,). A slice may end at each yield."""
        prompt, keys, start = reply.prompt, reply.prompt.keys, admission.num_reused
        reply.admitted(admission.slot, start)
        if admission.source is not None:
            self.backend.copy_prefix(admission.source, admission.slot, start)
            self._scheduler.computed(reply.request_id, keys[:start])
        begin, first_image = prompt.cut(start)
        reply.encoding()
        image_embeds = yield from encode_images(prompt, first_image, self.backend, self._encoder_cache)
        reply.encoded()
        if image_embeds is not None:
            finite.check_finite(image_embeds, finite.IMAGE_FEATURES)
        embeds = self._inputs_embeds(prompt, begin, image_embeds)[start - begin :]
        finite.check_finite(embeds, finite.EMBEDDINGS)
        while True:
            chunk = embeds[: self._scheduler.next_chunk(len(embeds))]
            hidden = self.backend.prefill_chunk(chunk, admission.slot, start)
            self._scheduler.computed(reply.request_id, keys[start : start + len(chunk)])
            start, embeds = start + len(chunk), embeds[len(chunk) :]
            if not len(embeds):
                finite.check_finite(hidden, finite.HIDDEN)
                return self.backend.logits(hidden)[0]
            yield

    def _end(self, request_id: int) -> None:
        """Remove a request; its slot keeps its keys and values for reuse."""
        if request_id == self._scheduler.starting and self._work is not None:
            self._work.close()
        self._scheduler.release(request_id)
        self._replies.pop(request_id, None)

    @torch.no_grad()
    def _inputs_embeds(self, prompt: PromptInputs, begin: int, image_embeds: Tensor | None) -> Tensor:
        """Embeddings (T, D) of the prompt from position `begin`, with image embeddings at the placeholders."""
        ids = prompt.token_ids[begin:]
        embeds = self.backend.embed(ids)
        if image_embeds is None:
            return embeds
        is_placeholder = torch.tensor([ids], device=embeds.device) == self.config.image_token_index
        return join_image_and_text(embeds[None], image_embeds, is_placeholder)[0]
