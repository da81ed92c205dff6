"""One question answered: the model run with a stopwatch. `ask` and `chat` share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastvlm.cli.choices import Sampling
from fastvlm.cli.token_text import TokenText

__all__ = ["Answerer", "Reply", "Timings", "Usage"]

Message = Mapping[str, Any]
OnText = Callable[[str], None]


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply. `prompt_tokens` has the `image_tokens` in it, `completion_tokens` the end token."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one reply.

    `load`: opening the model, libraries' imports included. The rest is measured with the model open: `preprocess`: from
    picture bytes to tensors; `encode`: encoder and projector; `prefill`: the decoder's first pass, up to the first
    token; `ttft`: from picture bytes to the first text that can be shown, which is these three and what lies between;
    `total`: to the end of the reply.
    """

    load: float
    preprocess: float
    encode: float
    prefill: float
    ttft: float | None
    total: float


@dataclass(frozen=True)
class Reply:
    """An answer and what it took."""

    text: str
    finish_reason: str  # "stop": the model ended it; "length": cut after max_new_tokens
    usage: Usage
    timings: Timings
    tokens_per_second: float | None  # of decoding, after the first token; None for a single token

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the timings rounded to a microsecond."""
        timings = {name: None if ms is None else round(ms, 3) for name, ms in asdict(self.timings).items()}
        rate = self.tokens_per_second
        return {
            "answer": self.text,
            "usage": asdict(self.usage),
            "finish_reason": self.finish_reason,
            "timings_ms": timings,
            "tokens_per_second": None if rate is None else round(rate, 2),
        }


def _keep_silent(_: str) -> None:
    """For answers that are wanted whole."""


class Answerer:
    """Answers over one open model.

    Args:
        model, processor: as :func:`fastvlm.load` returns them.
        sampling: how tokens are picked.
        load_ms: what opening took, for the timings.
    """

    def __init__(self, model: Any, processor: Any, sampling: Sampling, load_ms: float = 0.0) -> None:
        self.model, self.processor, self.sampling, self.load_ms = model, processor, sampling, load_ms
        # Features (N, D) of pictures seen, by the identity of the picture, which is kept so that no other gets its id.
        self._features: dict[int, tuple[Image.Image, Tensor]] = {}

    def forget(self) -> None:
        """Drop the features of pictures seen so far."""
        self._features.clear()

    def reply(self, messages: Sequence[Message], on_text: OnText = _keep_silent, opening_ms: float = 0.0) -> Reply:
        """Answer the last of `messages`.

        Args:
            messages: chat messages whose contents are lists of items; pictures are PIL images under ``"image"``.
            on_text: called with each piece of text as it comes.
            opening_ms: what was spent before on turning this question's picture bytes into PIL images.

        Raises:
            ContextLengthError: prompt and reply do not fit, before anything is encoded.
            KeyboardInterrupt: Ctrl-C; what `on_text` got by then is all there is.
        """
        start_s = time.perf_counter()
        inputs = self.processor.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        preprocessed_s = time.perf_counter()
        self._refuse_overflow(inputs["input_ids"])
        image = self._encode(_pictures(messages), inputs.get("pixel_values"))
        encoded_s = time.perf_counter()
        stream = self._generate(inputs, image, on_text)
        return self._report(stream, inputs["input_ids"], opening_ms, (start_s, preprocessed_s, encoded_s))

    def _refuse_overflow(self, input_ids: Tensor) -> None:
        """Ask the model itself, before the encoder has run: `generate` is only called after it."""
        self.model.check_context(input_ids.shape[1], self.sampling.max_new_tokens)

    @torch.no_grad()
    def _encode(self, pictures: Sequence[Image.Image], pixel_values: Tensor | None) -> Any:
        """Features of `pictures` as `get_image_features` returns them; each picture is encoded once in its life."""
        if pixel_values is None:
            return None
        new = [index for index, picture in enumerate(pictures) if id(picture) not in self._features]
        if new:
            features = self.model.get_image_features(pixel_values[new].to(self.model.device)).pooler_output
            for index, feature in zip(new, features, strict=True):
                self._features[id(pictures[index])] = (pictures[index], feature)
        stacked = torch.stack([self._features[id(picture)][1] for picture in pictures])
        if stacked.device.type == "cuda":
            torch.cuda.synchronize(stacked.device)  # for the stopwatch: work on a GPU is only queued
        return BaseModelOutputWithPooling(pooler_output=stacked)

    def _generate(self, inputs: Mapping[str, Any], image: Any, on_text: OnText) -> TokenText:
        stream = TokenText(lambda ids: self.processor.decode(ids, skip_special_tokens=True), on_text)
        if self.sampling.seed is not None:
            torch.manual_seed(self.sampling.seed)
        arguments = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        if image is not None:
            arguments["mm_encoder_outputs"] = {"image": image}
        self.model.generate(**arguments, **self.sampling.generate_arguments(), streamer=stream)
        return stream

    def _has_ended(self, token_ids: Sequence[int]) -> bool:
        is_cut = len(token_ids) == self.sampling.max_new_tokens
        return not is_cut or token_ids[-1] in self.model.config.stop_token_ids

    def _report(
        self, stream: TokenText, input_ids: Tensor, opening_ms: float, moments_s: tuple[float, float, float]
    ) -> Reply:
        start_s, preprocessed_s, encoded_s = moments_s
        times_s, count = stream.token_times_s, len(stream.token_ids)
        decoding_s = times_s[-1] - times_s[0]
        first_text_s = stream.first_text_s
        return Reply(
            text=stream.text,
            finish_reason="stop" if self._has_ended(stream.token_ids) else "length",
            usage=Usage(
                prompt_tokens=input_ids.shape[1],
                image_tokens=int((input_ids == self.model.config.image_token_index).sum()),
                completion_tokens=count,
            ),
            timings=Timings(
                load=self.load_ms,
                preprocess=opening_ms + 1000 * (preprocessed_s - start_s),
                encode=1000 * (encoded_s - preprocessed_s),
                prefill=1000 * (times_s[0] - encoded_s),
                ttft=None if first_text_s is None else opening_ms + 1000 * (first_text_s - start_s),
                total=opening_ms + 1000 * (times_s[-1] - start_s),
            ),
            tokens_per_second=(count - 1) / decoding_s if count > 1 and decoding_s > 0 else None,
        )


def _pictures(messages: Sequence[Message]) -> list[Image.Image]:
    return [item["image"] for message in messages for item in message["content"] if item["type"] == "image"]
