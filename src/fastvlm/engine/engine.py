"""The engine: many requests, one model. Encodes, prefills, decodes, picks and streams; decides nothing about slots.

`Engine.step` is the story: one token for each running reply, then a slice of the work on the request that was let in
last, so that replies do not stand still for it. Everything happens in the thread that calls it;
:class:`fastvlm.AsyncEngine` is the door for servers.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from itertools import compress, count
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.backends.generators import finished
from fastvlm.backends.local import Kernels, LocalBackend, make_backend
from fastvlm.config import Bits
from fastvlm.engine.encode_images import encode_images
from fastvlm.engine.encoder_cache import EncoderCache
from fastvlm.engine.pixel_cache import PixelCache, ReadyImages
from fastvlm.engine.prompt_inputs import PreparedPrompt, prepare
from fastvlm.engine.sampling import Sampler, TokenGuide, pick_tokens
from fastvlm.engine.scheduler import Admission, Scheduler
from fastvlm.engine.sequence import Reply
from fastvlm.engine.types import Completion, SamplingParams, TokenEvent
from fastvlm.errors import ContextLengthError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.model import finite
from fastvlm.model.context_length import refuse_overlong
from fastvlm.model.joint import join_image_and_text
from fastvlm.processing.processor import Processor

__all__ = ["ADMISSION_RATIO", "Engine", "HasCheckpoint"]

ADMISSION_RATIO = 4.0  # docs/performance.md, "While others start"
_IMAGE_CACHE_BYTES = 2**28  # 585 images of the 0.5B in bfloat16
_PIXEL_CACHE_BYTES = 2**26  # five images of 1024 px


class HasCheckpoint(Protocol):
    """A live model that an engine can be made from; transformers' models of this package are."""

    def to_checkpoint(self, processor: Processor) -> Checkpoint:
        """The model's weights, which stay the model's, and what belongs to them."""


class Engine:
    """Answers many requests with one model, as `generate` would, token for token.

    Args:
        checkpoint: for its configuration, processor and end tokens; its weights are the backend's matter.
        backend: computes; its `num_slots` and `context` are the engine's.
        max_waiting: requests that may wait for a slot, beside those for which one is free.
        admission_ratio: while replies are made, a new request's image and prompt are computed in slices, each about
            this many times as long as a decoding step, with a decoding step between two. Large numbers start requests
            sooner, small ones keep replies flowing; ``math.inf`` for no slices: the most tokens a second if nobody
            watches. Slices need a backend that pauses: on a CPU.
        image_cache_bytes: memory for projected images, which are known by their content.
        pixel_cache_bytes: memory for images as they go into the encoder, which are known by the bytes they came in.
        clock: seconds that only go forward.

    Attributes:
        processor: image processor, tokenizer and chat template; can be changed between requests.
        config: the model's.
        backend: what computes.

    Raises:
        UsageError: numbers that no engine can have.
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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.backend, self.processor, self.config = backend, checkpoint.processor, checkpoint.config
        self._stop_ids, self._clock = checkpoint.stop_token_ids, clock
        self._scheduler = Scheduler(
            backend.num_slots, max_waiting, admission_ratio=admission_ratio, chunk_tokens=backend.chunk_tokens
        )
        self._encoder_cache, self._pixel_cache = EncoderCache(image_cache_bytes), PixelCache(pixel_cache_bytes)
        self._replies: dict[int, Reply] = {}
        self._work: Generator[None, None, Tensor] | None = None  # on the request that starts
        self._ids = count(1)
        self._outbox: list[TokenEvent] = []
        self._mailboxes: dict[int, deque[TokenEvent]] = {}

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        bits: Bits = 16,
        num_slots: int = 4,
        context: int | None = None,
        kernels: Kernels = "fast",
        base: Engine | None = None,
        **settings: Any,
    ) -> Engine:
        """An engine for `checkpoint` with the fastest kernels for `device`.

        Args:
            checkpoint: as :func:`fastvlm.open_checkpoint` returns it; it can be used afterwards.
            device, dtype, bits, num_slots, context, kernels: see :func:`fastvlm.backends.local.make_backend`.
            base: an engine made with the same settings from this checkpoint, or from the one that it differs from by
                some tensors; weights that are the same are held once. It may run in another thread.
            settings: of :class:`Engine`.
        """
        shared = base.backend if base is not None and isinstance(base.backend, LocalBackend) else None
        backend = make_backend(
            checkpoint,
            device=device,
            dtype=dtype,
            bits=bits,
            num_slots=num_slots,
            context=context,
            kernels=kernels,
            base=shared,
        )
        if base is not None:  # tokenizers are changed while they are used: one for each thread
            checkpoint = replace(checkpoint, processor=copy.deepcopy(checkpoint.processor))
        return cls(checkpoint, backend, **settings)

    @classmethod
    def from_model(cls, model: HasCheckpoint, processor: Processor, **settings: Any) -> Engine:
        """An engine for a live model, as :func:`fastvlm.load` returns it with its processor.

        The model can still be used afterwards; drop it, if it is not, because its weights take memory of their own.

        Args:
            model: a :class:`fastvlm.FastVlmForConditionalGeneration` in eval mode.
            processor: a :class:`fastvlm.FastVlmProcessor`.
            settings: of :meth:`from_checkpoint`.

        Raises:
            UsageError: a model in training mode.
            ConfigError: a decoder that is no plain Qwen2.
        """
        return cls.from_checkpoint(model.to_checkpoint(processor), **settings)

    @property
    def num_slots(self) -> int:
        """Replies that are made at the same time."""
        return self.backend.num_slots

    @property
    def max_waiting(self) -> int:
        """Requests that may wait for a slot."""
        return self._scheduler.max_waiting

    @property
    def num_running(self) -> int:
        """Requests in slots, the one that starts among them."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._scheduler.waiting)

    @property
    def context(self) -> int:
        """Tokens that one request may have, prompt and reply."""
        return self.backend.context

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of key/value cache that one token takes."""
        return self.backend.kv_bytes_per_token

    @property
    def image_hits(self) -> tuple[int, int]:
        """Images that were asked for so far: (known to the image cache, encoded anew)."""
        return self._encoder_cache.num_hits, self._encoder_cache.num_misses

    @property
    def has_work(self) -> bool:
        """True if a step would do something."""
        return bool(self._replies or self._outbox)

    # ------------------------------------------------------------------------------------------ asking

    def prepare(self, prompt: Any, ready: ReadyImages | None = None) -> PreparedPrompt:
        """See :func:`fastvlm.engine.prompt_inputs.prepare`; `ready`: images decoded elsewhere, by their bytes."""
        return prepare(prompt, self._pixel_cache.over(self.processor, ready), self.config)

    def known_images(self, contents: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Those of `contents` (encoded images) whose pixels (3, H, W) are remembered and need not be made again."""
        return self._pixel_cache.known(self.processor, contents)

    def submit(self, prompt: Any, params: SamplingParams | None = None, *, guide: TokenGuide | None = None) -> int:
        """Queue a request; returns its number, which its events carry. `guide` says which tokens may come.

        Raises:
            ContextLengthError: prompt and reply do not fit; nothing has been computed.
            EngineBusyError: too many are waiting.
            PromptError, ImageError, ImageTokenMismatchError, UsageError: see :meth:`prepare`.

        The last event of a request that fails later carries its error: NonFiniteError for NaN or infinity.
        """
        params = SamplingParams() if params is None else params
        prepared = self.prepare(prompt)
        self._check_context(len(prepared.token_ids), params.max_new_tokens)
        request_id = next(self._ids)
        self._scheduler.submit(request_id, prepared.keys)
        self._replies[request_id] = Reply(
            request_id,
            prepared,
            params,
            Sampler(params, prepared.token_ids, self.backend.device, guide),
            decode=self._decode_text,
            stop_ids=self._stop_ids,
            clock=self._clock,
        )
        return request_id

    def cancel(self, request_id: int) -> bool:
        """End a request now: its slot is free for the next step, which also gives its last event.

        False if there is no such request, or it has ended.
        """
        reply = self._replies.get(request_id)
        if reply is None:
            return False
        self._end(request_id)
        self._outbox.append(reply.broken_off())
        return True

    def stream(self, prompt: Any, params: SamplingParams | None = None) -> Generator[TokenEvent]:
        """Submit a request (when the first event is asked for) and step until it ends; others step along.

        Who stops listening cancels it. Raises what :meth:`submit` raises, and what fails while it runs.
        """
        request_id = self.submit(prompt, params)
        mailbox = self._mailboxes[request_id] = deque()
        try:
            while True:
                while not mailbox:
                    self.step()
                event = mailbox.popleft()
                if event.error is not None:
                    raise event.error
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            del self._mailboxes[request_id]
            self.cancel(request_id)

    def generate(self, prompt: Any, params: SamplingParams | None = None) -> Completion:
        """A whole reply; raises what :meth:`stream` raises."""
        *_, last = self.stream(prompt, params)
        assert last.completion is not None  # noqa: S101 - the last event has it
        return last.completion

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Image embeds (I, N, D) of pixel_values (I, 3, H, W) in [0, 1], computed anew."""
        return finished(self.backend.encode(pixel_values))

    def forget(self) -> None:
        """Drop what is kept of earlier requests: images and prefixes."""
        self._encoder_cache.clear()
        self._pixel_cache.clear()
        self._scheduler.forget()

    # ------------------------------------------------------------------------------------------ working

    def step(self) -> list[TokenEvent]:
        """One more token for each running request, then a slice of the work on the one that starts.

        If no other runs, that is all of its work, up to its first token.

        Returns:
            The events of this step, one for each token, and those of requests that were cancelled before it.

        Raises:
            CheckpointError: the weights are mapped from a file that was written to since.
        """
        if self._replies:
            self.backend.check_weights()
        events, self._outbox = self._outbox, []
        begun_s = self._clock()
        running = [self._replies[request_id] for request_id in self._scheduler.decoding]
        if running:
            events += self._say(running, self._decode(running))
        events += self._start(self._clock() - begun_s)
        for event in events:
            if event.request_id in self._mailboxes:
                self._mailboxes[event.request_id].append(event)
        return events

    def _decode(self, replies: Sequence[Reply]) -> Tensor:
        """Logits (B, V) after the newest token of each reply."""
        tokens = [reply.last_token for reply in replies]
        slots, positions = [reply.slot for reply in replies], [reply.position for reply in replies]
        logits = self.backend.decode(tokens, slots, positions)
        for reply in replies:
            self._scheduler.computed(reply.request_id, [reply.last_token])
        return logits

    def _say(self, replies: Sequence[Reply], logits: Tensor) -> list[TokenEvent]:
        """Pick the next token of each reply from its row of `logits` (B, V); NaN ends it with NonFiniteError."""
        logits = logits.float()  # once, for the check and for picking
        is_finite = finite.rows_with_finite_logits(logits)
        broken = [reply for reply, good in zip(replies, is_finite, strict=True) if not good]
        events = [reply.broken_off(finite.non_finite_logits()) for reply in broken]
        if broken:
            logits = logits[torch.tensor(is_finite, device=logits.device)]
            replies = list(compress(replies, is_finite))
        picked = pick_tokens(logits, [reply.sampler for reply in replies])
        events += [reply.take(one) for reply, one in zip(replies, picked, strict=True)]
        for event in events:
            if event.finish_reason is not None:
                self._end(event.request_id)
        return events

    def _start(self, step_s: float) -> list[TokenEvent]:
        """A slice of work on the request that starts, and its first token at the end of the last slice.

        `step_s` are the seconds of the decoding step before. What fails here fails for this request alone.
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
            return self._say([reply], logits[None])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other requests go on; its own listener gets it
            self._end(reply.request_id)
            return [reply.broken_off(error)]

    def _slice(self, work: Generator[None, None, Tensor], step_s: float) -> Tensor | None:
        """Logits (V,) if `work` came to its end; None if the scheduler wants a pause."""
        begun_s = now_s = self._clock()
        try:
            while True:
                next(work)
                before_s, now_s = now_s, self._clock()
                if self._scheduler.must_pause(now_s - begun_s, now_s - before_s, step_s):
                    return None
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _prefill(self, reply: Reply, admission: Admission) -> Generator[None, None, Tensor]:
        """Logits (V,) after the prompt; only what no slot holds is computed. A slice may end where it yields."""
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
        """Nothing is left of a request but what its slot holds."""
        if request_id == self._scheduler.starting and self._work is not None:
            self._work.close()
        self._scheduler.release(request_id)
        self._replies.pop(request_id, None)

    # ------------------------------------------------------------------------------------------ images

    @torch.no_grad()
    def _inputs_embeds(self, prompt: PreparedPrompt, begin: int, image_embeds: Tensor | None) -> Tensor:
        """Embeddings (T, D) of the prompt from position `begin` on."""
        ids = prompt.token_ids[begin:]
        embeds = self.backend.embed(ids)
        if image_embeds is None:
            return embeds
        is_placeholder = torch.tensor([ids], device=embeds.device) == self.config.image_token_index
        return join_image_and_text(embeds[None], image_embeds, is_placeholder)[0]

    # ------------------------------------------------------------------------------------------ details

    def _check_context(self, prompt_tokens: int, new_tokens: int) -> None:
        refuse_overlong(self.config.text_config.max_position_embeddings, prompt_tokens, new_tokens)
        if prompt_tokens + new_tokens > self.context:
            raise ContextLengthError(
                f"The prompt has {prompt_tokens} tokens and {new_tokens} new ones are asked for, "
                f"{prompt_tokens + new_tokens} in all; a slot of this engine holds {self.context}. Make the engine "
                "with a larger context, shorten the prompt, or lower max_new_tokens."
            )

    def _decode_text(self, token_ids: Sequence[int]) -> str:
        return self.processor.decode(token_ids, skip_special_tokens=True)
