"""An answer as the command shows and reports it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm.engine.types import Completion, TokenEvent


@dataclass(frozen=True)
class Reply:
    """An answer, and the milliseconds spent before it.

    Args:
        completion: the answer.
        load_ms: opening the model, imports included.
        opening_ms: from this question's image bytes to PIL images.
    """

    completion: Completion
    load_ms: float
    opening_ms: float

    @property
    def timings_ms(self) -> dict[str, float | None]:
        """Durations from the image bytes on: `preprocess`, `ttft` and `total` include `opening_ms`."""
        times = self.completion.timings
        return {
            "load": self.load_ms,
            "preprocess": self.opening_ms + times.preprocess,
            "encode": times.encode,
            "prefill": times.prefill,
            "ttft": None if times.ttft is None else self.opening_ms + times.ttft,
            "total": self.opening_ms + times.total,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON; timings rounded to a microsecond."""
        completion, rate = self.completion, self.completion.tokens_per_second
        return {
            "answer": completion.text,
            "usage": asdict(completion.usage),
            "finish_reason": completion.finish_reason,
            "timings_ms": {name: None if ms is None else round(ms, 3) for name, ms in self.timings_ms.items()},
            "tokens_per_second": None if rate is None else round(rate, 2),
        }

    def summary(self, model: str) -> str:
        """One line: tokens, times and speed."""
        usage, ttft_ms, rate = self.completion.usage, self.timings_ms["ttft"], self.completion.tokens_per_second
        parts = [
            Path(model).name,
            f"{usage.prompt_tokens} tokens in ({usage.image_tokens} of images), {usage.completion_tokens} out",
            f"opened in {self.load_ms / 1000:.1f} s",
            *([] if ttft_ms is None else [f"first text after {ttft_ms:.0f} ms"]),
            *([] if rate is None else [f"{rate:.0f} tokens/s"]),
            *(["cut by --max-new-tokens"] if self.completion.finish_reason == "length" else []),
        ]
        return " · ".join(parts)


def written(events: Generator[TokenEvent], write: Callable[[str], None]) -> Completion:
    """Write the text of `events` as it comes, and return the whole; an error or Ctrl-C ends the request."""
    completion = None
    with closing(events) as open_events:
        for event in open_events:
            if event.text:
                write(event.text)
            completion = event.completion
    assert completion is not None  # noqa: S101 - the last event has it
    return completion
