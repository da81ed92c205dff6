"""One question answered by the engine, as the command shows and reports it. `ask` and `chat` share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from fastvlm.cli.choices import Sampling
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import Completion, Usage

__all__ = ["Answerer", "Reply", "Timings", "Usage"]

Message = Mapping[str, Any]
OnText = Callable[[str], None]


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one reply.

    `load`: opening the model, libraries' imports included. The rest is measured with the model open: `preprocess`: from
    image bytes to tensors; `encode`: encoder and projector; `prefill`: the decoder's first pass, up to the first
    token; `ttft`: from image bytes to the first text that can be shown, which is these three and what lies between;
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
    """Answers over one engine.

    Args:
        engine: one slot is enough; it keeps what was computed for the question before.
        sampling: how tokens are picked.
        load_ms: what opening took, for the timings.
    """

    def __init__(self, engine: Engine, sampling: Sampling, load_ms: float = 0.0) -> None:
        self.engine, self.sampling, self.load_ms = engine, sampling, load_ms

    def forget(self) -> None:
        """Drop what is kept of images and conversations so far."""
        self.engine.forget()

    def reply(self, messages: Sequence[Message], on_text: OnText = _keep_silent, opening_ms: float = 0.0) -> Reply:
        """Answer the last of `messages`.

        Args:
            messages: chat messages whose contents are lists of items; images are PIL images under ``"image"``.
            on_text: called with each piece of text as it comes.
            opening_ms: what was spent before on turning this question's image bytes into PIL images.

        Raises:
            ContextLengthError: prompt and reply do not fit, before anything is encoded.
            KeyboardInterrupt: Ctrl-C; what `on_text` got by then is all there is.
        """
        completion: Completion | None = None
        with closing(self.engine.stream(messages, self.sampling.params())) as events:
            for event in events:
                if event.text:
                    on_text(event.text)
                completion = event.completion
        assert completion is not None  # noqa: S101 - the last event has it
        return self._report(completion, opening_ms)

    def _report(self, completion: Completion, opening_ms: float) -> Reply:
        times = completion.timings
        return Reply(
            text=completion.text,
            finish_reason=completion.finish_reason,
            usage=completion.usage,
            timings=Timings(
                load=self.load_ms,
                preprocess=opening_ms + times.preprocess,
                encode=times.encode,
                prefill=times.prefill,
                ttft=None if times.ttft is None else opening_ms + times.ttft,
                total=opening_ms + times.total,
            ),
            tokens_per_second=completion.tokens_per_second,
        )
