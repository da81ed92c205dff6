"""The contestant `transformers`: its own FastVLM over the same folder, used as its documentation shows."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from fastvlm.bench.inputs import FIRST_QUESTION, text_prompt
from fastvlm.bench.measuring import GeneratingRuntime, sketch, wait_for
from fastvlm.bench.peers_folder import add_peers_folder, prepare_torchvision
from fastvlm.bench.rates import steady_rate
from fastvlm.bench.worker import Measured


class Stamps:
    """A streamer for `generate` that records the time of each token, of one or several replies."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.token_ids: list[Tensor] = []
        self._is_prompt_next = True

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call) or the next token of every reply."""
        if self._is_prompt_next:
            self._is_prompt_next = False
            return
        self.times_s.append(time.perf_counter())
        self.token_ids.append(value.reshape(-1))

    def end(self) -> None:
        """Does nothing: no token is held back."""


class TransformersModel(GeneratingRuntime):
    """transformers' `FastVlmForConditionalGeneration`: sdpa, eager, images in NCHW. Arguments: see :class:`Runtime`."""

    def __init__(self, folder: str, dtype: str = "bfloat16", threads: int = 0, device: str = "cpu") -> None:
        super().__init__(folder, dtype, threads, device)
        self.model: Any = None
        self.processor: Any = None

    def open(self) -> Measured:
        """Load the model; `facts` are the packages' versions."""
        start_s = time.perf_counter()
        add_peers_folder()
        prepare_torchvision()
        from transformers import AutoProcessor, FastVlmForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.model = FastVlmForConditionalGeneration.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), attn_implementation={"text_config": "sdpa"}
        ).to(self.device)
        self.model.eval()
        facts = {name: importlib.metadata.version(name) for name in ("transformers", "timm", "torchvision")}
        return Measured(time.perf_counter() - start_s, facts=facts)

    def _encoder_input(self, image: Tensor) -> Tensor:
        return image.to(self.model.device, self.model.dtype)

    def _features(self, inputs: Tensor) -> Tensor:
        features: Any = self.model.get_image_features(inputs, return_dict=True).pooler_output
        if isinstance(features, (list, tuple)):  # transformers before 5.20
            features = features[0]
        return cast("Tensor", features)

    @torch.inference_mode()
    def prefill(self, num_tokens: int, seed: int = 0) -> Measured:
        """Seconds from a prompt of text to the logits of its last position."""
        inputs = self._text_inputs(num_tokens, seed)
        start_s = time.perf_counter()
        logits = self.model(**inputs, use_cache=True, logits_to_keep=1).logits
        wait_for(self.device)
        seconds = time.perf_counter() - start_s
        return Measured(seconds, check=sketch(logits.float()), facts={"tokens": inputs["input_ids"].shape[1]})

    def ttft(self, image: str, side_px: int) -> Measured:
        """Seconds from an image file's bytes to the first text."""
        self.processor.image_processor.size = {"shortest_edge": side_px}
        self.processor.image_processor.crop_size = {"height": side_px, "width": side_px}
        with open(image, "rb") as file:  # noqa: PTH123  # read before the clock starts
            data = file.read()
        stamps = Stamps()
        spans: dict[str, float] = {}
        start_s = time.perf_counter()
        inputs = self._inputs(FIRST_QUESTION, Image.open(io.BytesIO(data)).convert("RGB"))
        spans["preprocess"] = time.perf_counter() - start_s
        with self._encoder_timed(spans):
            self.model.generate(**inputs, max_new_tokens=1, do_sample=False, streamer=stamps)
        first_s = stamps.times_s[0]
        self.processor.decode(stamps.token_ids[0], skip_special_tokens=True)
        end_s = time.perf_counter()
        parts = {**spans, "prefill": first_s - start_s - sum(spans.values()), "first_token": end_s - first_s}
        facts = {"tokens": inputs["input_ids"].shape[1]}
        return Measured(end_s - start_s, parts, [float(stamps.token_ids[0][0])], facts)

    def throughput(self, num_streams: int, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of several replies together, while all are being decoded."""
        inputs = {name: value.repeat(num_streams, 1) for name, value in self._text_inputs(prompt_tokens, seed).items()}
        stamps = Stamps()
        self.model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, streamer=stamps)
        first = [float(ids[0]) for ids in stamps.token_ids]
        return Measured(steady_rate([stamps.times_s] * num_streams), check=first, facts={"tokens": len(first)})

    def _inputs(self, question: str, *images: Any) -> dict[str, Any]:
        content = [*({"type": "image", "image": p} for p in images), {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _text_inputs(self, num_tokens: int, seed: int) -> dict[str, Any]:
        inputs = text_prompt(self.processor, num_tokens, seed)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    @contextlib.contextmanager
    def _encoder_timed(self, spans: dict[str, float]) -> Iterator[None]:
        """Store the seconds from the vision tower's start to the projector's end in `spans["encode"]`."""
        start_s = 0.0

        def start(*_: object) -> None:
            nonlocal start_s
            start_s = time.perf_counter()

        def end(*_: object) -> None:
            wait_for(self.device)
            spans["encode"] = time.perf_counter() - start_s

        model = self.model.model
        with (
            model.vision_tower.register_forward_pre_hook(start),
            model.multi_modal_projector.register_forward_hook(end),
        ):
            yield
