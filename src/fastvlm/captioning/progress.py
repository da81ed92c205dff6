"""Counts of a run while it goes on, and its summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.backends.native.openmp import usable_cores
from fastvlm.captioning.rows import Sample
from fastvlm.errors import DataError, UsageError

_LEAST_FOR_SHARE = 100  # rows before a percentage of errors can end a run
_EVERY_S = 0.5  # between two reports
_MILLION = 1_000_000


@dataclass
class Progress:
    """What has been done so far.

    Attributes:
        total: rows of the run, those of earlier runs included; None while it is not known.
        num_images: rows asked in this run.
        num_kept: rows that were there from an earlier run.
        num_failed: rows asked in this run that have an error.
        num_tokens: of the answers.
        errors: answers with errors, by the error's class.
        begun_s: when the captioner was ready, on the monotonic clock.
    """

    total: int | None = None
    num_images: int = 0
    num_kept: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    begun_s: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Start the clock: the captioner is ready."""
        self.begun_s = time.monotonic()

    def keep(self, num_rows: int) -> None:
        """Count rows that were there."""
        self.num_kept += num_rows

    def add(self, sample: Sample) -> None:
        """Count an asked row."""
        self.num_images += 1
        self.num_failed += sample.has_error
        for line in sample.lines:
            self.num_tokens += line["tokens"]
            if line["error"] is not None:
                self.errors[line["error"].partition(":")[0]] += 1

    @property
    def seconds(self) -> float:
        """Seconds since the first row."""
        return max(time.monotonic() - self.begun_s, 1e-9)

    @property
    def images_per_s(self) -> float:
        """Images answered each second, those with errors included."""
        return self.num_images / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated each second."""
        return self.num_tokens / self.seconds

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate; None while that is not known."""
        if self.total is None or not self.num_images:
            return None
        return max(self.total - self.num_kept - self.num_images, 0) / self.images_per_s


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class ErrorLimit:
    """How many rows may have an error before the run is stopped.

    Args:
        number: of rows; None for any number.
        share: of the rows asked in this run, 0 to 1, from the hundredth row on; None for any share.
    """

    number: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, text: str | None) -> ErrorLimit:
        """From ``100`` or ``1%``; None for no limit. Raises UsageError."""
        if text is None:
            return cls()
        digits, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
        try:
            value = float(digits) if percent else int(digits)
        except ValueError:
            value = -1.0
        if not 0 <= value <= (100 if percent else _MILLION * _MILLION):
            raise UsageError(f"max_errors is {text!r}; expected a number of rows such as 100, or a share such as 1%.")
        return cls(share=value / 100) if percent else cls(number=int(value))

    def check(self, progress: Progress, *, is_end: bool = False) -> None:
        """Raise DataError above the limit."""
        failed, asked = progress.num_failed, progress.num_images
        is_over = self.number is not None and failed > self.number
        if self.share is not None and (asked >= _LEAST_FOR_SHARE or is_end):
            is_over = is_over or failed > self.share * asked
        if is_over:
            limit = f"{self.number} rows" if self.number is not None else f"{100 * (self.share or 0):g} %"
            kinds = ", ".join(f"{count} {kind}" for kind, count in progress.errors.most_common(3))
            raise DataError(
                f"{failed} of {asked} rows have errors ({kinds}); the limit is {limit}. Nothing is lost: look at the "
                "column `error`, then give the same command again, with --retry-errors to ask these rows once more."
            )


class Reporter:
    """Calls `on_progress` at most every half second."""

    def __init__(self, progress: Progress, on_progress: OnProgress | None) -> None:
        self._progress, self._on_progress, self._next_s = progress, on_progress, 0.0

    def update(self, *, is_end: bool = False) -> None:
        """Report, if it is time to."""
        now_s = time.monotonic()
        if self._on_progress is not None and (is_end or now_s >= self._next_s):
            self._next_s = now_s + _EVERY_S
            self._on_progress(self._progress)


@dataclass(frozen=True)
class Summary:
    """Figures of a run that has ended.

    Args:
        images: rows asked in this run.
        kept: rows that were there from an earlier run.
        failed: rows asked in this run that have an error.
        errors: answers with errors, by the error's class.
        tokens: generated in this run.
        seconds: of the run, without loading the model.
        cores: that this process may use.
        failed_shards: inputs that could not be read to their end, with the reason.
        unused: files in folders that are neither images nor shards, by suffix.
    """

    images: int
    kept: int
    failed: int
    errors: Mapping[str, int]
    tokens: int
    seconds: float
    cores: int
    failed_shards: Sequence[str] = ()
    unused: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, progress: Progress, failed_shards: Sequence[str], unused: Mapping[str, int]) -> Summary:
        """The summary of a run whose counts are `progress`."""
        return cls(
            images=progress.num_images,
            kept=progress.num_kept,
            failed=progress.num_failed,
            errors=dict(progress.errors),
            tokens=progress.num_tokens,
            seconds=progress.seconds,
            cores=usable_cores(),
            failed_shards=list(failed_shards),
            unused=dict(unused),
        )

    @classmethod
    def together(cls, summaries: Sequence[Summary], seconds: float, cores: int) -> Summary:
        """Of several machines that worked at the same time, for `seconds` and with `cores` in all."""
        errors: Counter[str] = Counter()
        for one in summaries:
            errors.update(one.errors)
        return cls(
            images=sum(one.images for one in summaries),
            kept=sum(one.kept for one in summaries),
            failed=sum(one.failed for one in summaries),
            errors=dict(errors),
            tokens=sum(one.tokens for one in summaries),
            seconds=max(seconds, 1e-9),
            cores=cores,
            failed_shards=sorted({problem for one in summaries for problem in one.failed_shards}),
            unused=summaries[0].unused if summaries else {},
        )

    @property
    def images_per_s(self) -> float:
        """Images a second; 0 if none was asked."""
        return self.images / self.seconds

    @property
    def images_per_s_per_core(self) -> float:
        """Images a second for each core that the process may use."""
        return self.images_per_s / self.cores

    def cost_per_million(self, price_per_hour: float) -> float | None:
        """Price of a million images at this rate on this machine; None if none was asked."""
        return _MILLION / self.images_per_s / 3600 * price_per_hour if self.images else None

    def as_dict(self, price_per_hour: float | None = None) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            **vars(self),
            "images_per_s": self.images_per_s,
            "images_per_s_per_core": self.images_per_s_per_core,
            "tokens_per_s": self.tokens / self.seconds,
            "cost_per_million_images": None if price_per_hour is None else self.cost_per_million(price_per_hour),
        }
