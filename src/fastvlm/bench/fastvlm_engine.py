"""The contestant `fastvlm`: our engine, with weights of 16, 8 or 4 bits."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from torch import Tensor

from fastvlm.backends.devices import as_dtype, pick_device
from fastvlm.backends.native.kernels import all_kernels
from fastvlm.backends.native.library import SWITCH, TORCH
from fastvlm.bench.inputs import FIRST_QUESTION, SECOND_QUESTION, text_prompt
from fastvlm.bench.measuring import GeneratingRuntime
from fastvlm.bench.rates import steady_rate
from fastvlm.bench.worker import Measured
from fastvlm.config import Bits, EncoderBits
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import Completion, SamplingParams
from fastvlm.errors import MeasurementError, UsageError
from fastvlm.opening import open_checkpoint
from fastvlm.processing.image_processor import image_size_px


class FastVlmEngine(GeneratingRuntime):
    """Our engine over a checkpoint.

    Args:
        folder, dtype, threads, device: see :class:`Runtime`.
        bits: of the decoder's and the head's weights: 16 (those of `dtype`), 8 or 4.
        num_slots: requests at the same time.
        encoder_bits: of the encoder's weights: 16 (those of `dtype`) or 8.
    """

    def __init__(
        self,
        folder: str,
        dtype: str = "bfloat16",
        bits: Bits = 16,
        threads: int = 0,
        device: str = "cpu",
        num_slots: int = 8,
        encoder_bits: EncoderBits = 16,
    ) -> None:
        super().__init__(folder, dtype, threads, device)
        self.bits, self.encoder_bits, self.num_slots = bits, encoder_bits, num_slots
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, once it is open."""
        if self._engine is None:
            raise UsageError("Nothing is open; call open() first.")
        return self._engine

    def open(self) -> Measured:
        """Load the model as `fastvlm ask` does.

        Raises:
            MeasurementError: FASTVLM_KERNELS names kernels that are not built.
        """
        asked, used = os.environ.get(SWITCH), kernels_in_use()
        if asked and asked != used:
            raise MeasurementError(
                f"{SWITCH} is {asked!r}, but {used!r} would be measured: those kernels are not built, or not for this "
                "number of threads. Run fastvlm build-kernels."
            )
        start_s = time.perf_counter()
        dtype, device = as_dtype(self.dtype), pick_device(self.device)
        checkpoint = open_checkpoint(self.folder, device=device, dtype=dtype)
        self._engine = Engine.from_checkpoint(
            checkpoint,
            device=device,
            dtype=dtype,
            bits=self.bits,
            num_slots=self.num_slots,
            admission_ratio=math.inf,  # one request starts in each step
            encoder_bits=self.encoder_bits,
        )
        return Measured(time.perf_counter() - start_s, facts={"kernels": used})

    def _encoder_input(self, image: Tensor) -> Tensor:
        return image

    def _features(self, inputs: Tensor) -> Tensor:
        return self.engine.encode(inputs)

    def prefill(self, num_tokens: int, seed: int = 0) -> Measured:
        """Seconds from a prompt of text to its first token."""
        self.engine.forget()
        prompt = text_prompt(self.engine.processor, num_tokens, seed)
        reply = self.engine.generate(prompt, SamplingParams(max_new_tokens=1))
        facts = {"tokens": reply.usage.prompt_tokens}
        return Measured(reply.timings.prefill / 1000, check=[float(reply.token_ids[0])], facts=facts)

    def ttft(self, image: str, side_px: int) -> Measured:
        """Seconds from an image file's bytes to the first text; the caches are empty."""
        self.engine.forget()
        return self._first_text(Path(image).read_bytes(), side_px, FIRST_QUESTION)

    def second_question(self, image: str, side_px: int) -> Measured:
        """As `ttft`, of another question about the same image, whose bytes are decoded again."""
        first = self.ttft(image, side_px)
        second = self._first_text(Path(image).read_bytes(), side_px, SECOND_QUESTION)
        return Measured(second.value, {**second.parts, "first_question": first.value}, second.check)

    def throughput(self, num_streams: int, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of several replies together, while all are being decoded.

        Replies start one per step; earlier ones get more tokens, so that all end in the same step.
        """
        prompt = text_prompt(self.engine.processor, prompt_tokens, seed)
        ids = [
            self.engine.submit(prompt, SamplingParams(max_new_tokens=num_tokens + num_streams - 1 - ahead))
            for ahead in range(num_streams)
        ]
        times_s: dict[int, list[float]] = {request_id: [] for request_id in ids}
        tokens: list[float] = []
        while self.engine.has_work:
            events = self.engine.step()
            moment = time.perf_counter()
            for event in events:
                times_s[event.request_id].append(moment)
                tokens += [float(event.token_id)] if event.request_id == ids[-1] and event.token_id is not None else []
        return Measured(steady_rate(list(times_s.values())), check=tokens, facts={"tokens": len(tokens)})

    def _first_text(self, data: bytes, side_px: int, question: str) -> Measured:
        processor = self.engine.processor.image_processor
        processor.image_size = image_size_px(side_px, processor.patch_size)
        content = [{"type": "image", "image": data}, {"type": "text", "text": question}]
        start_s = time.perf_counter()
        stream = self.engine.stream([{"role": "user", "content": content}], SamplingParams(max_new_tokens=1))
        event = next(stream)
        seconds = time.perf_counter() - start_s
        if event.completion is None:
            raise UsageError("The engine gave one token without an end; expected a reply of one token.")
        reply = event.completion
        facts = {"tokens": reply.usage.prompt_tokens}
        return Measured(seconds, _parts(reply, seconds), [float(reply.token_ids[0])], facts)


def kernels_in_use() -> str:
    """The best level of the compiled kernels that is used here; "torch" for PyTorch's own."""
    return next((kernels.level for kernels in all_kernels()), TORCH)


def _parts(reply: Completion, total_s: float) -> dict[str, float]:
    parts = {name: getattr(reply.timings, name) / 1000 for name in ("preprocess", "encode", "prefill")}
    return {**parts, "first_token": total_s - sum(parts.values())}
