"""The contestant `fastvlm`: the engine, with weights of 16, 8 or 4 bits."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastvlm.backends.devices import as_dtype, pick_device
from fastvlm.bench.inputs import FIRST_QUESTION, SECOND_QUESTION, long_question
from fastvlm.bench.measuring import pixels, sketch, steady_rate, wait_for
from fastvlm.bench.memory import peak_bytes
from fastvlm.bench.worker import Measured
from fastvlm.config import Bits
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import Completion, SamplingParams
from fastvlm.errors import UsageError
from fastvlm.opening import open_checkpoint
from fastvlm.processing.image_processor import image_size_px
from fastvlm.processing.processor import Processor


class OwnContestant:
    """The engine over a checkpoint.

    Args:
        folder: the checkpoint.
        dtype: the dtype of the computation.
        bits: of the decoder's and the head's weights: 16 (those of `dtype`), 8 or 4.
        threads: of torch; 0 for the default.
        device: "cpu", "cuda".
        num_slots: requests at the same time.
    """

    def __init__(
        self,
        folder: str,
        dtype: str = "bfloat16",
        bits: Bits = 16,
        threads: int = 0,
        device: str = "cpu",
        num_slots: int = 8,
    ) -> None:
        self.folder, self.dtype, self.bits, self.num_slots, self.device = folder, dtype, bits, num_slots, device
        if threads:
            torch.set_num_threads(threads)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, once it is open."""
        if self._engine is None:
            raise UsageError("Nothing is open; call open() first.")
        return self._engine

    @property
    def processor(self) -> Processor:
        """The engine's."""
        return self.engine.processor

    def open(self) -> Measured:
        """Load the model, as `fastvlm ask` does; on a CPU the engine converts the weights to `dtype`."""
        start_s = time.perf_counter()
        dtype, device = as_dtype(self.dtype), pick_device(self.device)
        checkpoint = open_checkpoint(self.folder, device=device, dtype=dtype)
        self._engine = Engine.from_checkpoint(
            checkpoint,
            device=device,
            dtype=dtype,
            bits=self.bits,
            num_slots=self.num_slots,
            admission_ratio=math.inf,  # one begins each step
        )
        return Measured(time.perf_counter() - start_s)

    @torch.inference_mode()
    def encode(self, side_px: int) -> Measured:
        """Seconds from pixels to projected visual tokens."""
        image = pixels(side_px)
        start_s = time.perf_counter()
        features = self.engine.encode(image)
        wait_for(self.device)
        seconds = time.perf_counter() - start_s
        return Measured(seconds, check=sketch(features.float()))

    def prefill(self, num_tokens: int, seed: int = 0) -> Measured:
        """Seconds from a prompt of text to its first token."""
        self.engine.forget()
        prompt = self._text_prompt(num_tokens, seed)
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

    def decode(self, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of one reply, after its first token."""
        return self.throughput(1, num_tokens, prompt_tokens, seed)

    def throughput(self, num_streams: int, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of several replies together, while all are being decoded.

        Replies start one per step; earlier ones get more tokens, so that all end in the same step.
        """
        prompt = self._text_prompt(prompt_tokens, seed)
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

    def memory(self) -> Measured:
        """Largest resident set of this process so far."""
        return Measured(peak_bytes(self.device))

    def _first_text(self, data: bytes, side_px: int, question: str) -> Measured:
        processor = self.processor.image_processor
        processor.image_size = image_size_px(side_px, processor.patch_size)
        content = [{"type": "image", "image": data}, {"type": "text", "text": question}]
        start_s = time.perf_counter()
        stream = self.engine.stream([{"role": "user", "content": content}], SamplingParams(max_new_tokens=1))
        event = next(stream)
        seconds = time.perf_counter() - start_s
        if event.completion is None:
            raise UsageError("The engine gave one token without an end; expected a reply of one token.")
        return Measured(seconds, _parts(event.completion, seconds), [float(event.completion.token_ids[0])])

    def _text_prompt(self, num_tokens: int, seed: int) -> Any:
        def inputs(question: str) -> Any:
            messages: Sequence[Any] = [{"role": "user", "content": [{"type": "text", "text": question}]}]
            return self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )

        return inputs(long_question(lambda text: int(inputs(text)["input_ids"].shape[1]), num_tokens, seed))


def _parts(reply: Completion, total_s: float) -> dict[str, float]:
    timings = reply.timings
    parts = {
        "preprocess": timings.preprocess / 1000,
        "encode": timings.encode / 1000,
        "prefill": timings.prefill / 1000,
    }
    return {**parts, "first_token": total_s - sum(parts.values())}
