"""Report of ``fastvlm train --check``, which reads every record and opens every image. Bad records are listed with
their reasons.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from fastvlm.errors import DataError, FastVlmError, ImageError
from fastvlm.images import open_image
from fastvlm.training.data.dataset import CHUNK, IGNORED, Supervised, SupervisedDataset, refuse_missing
from fastvlm.training.data.samples import BadRecordError, Sample
from fastvlm.training.data.tar_shards import UnusedMember

LISTED = 20  # bad records, long samples and unused members in the text; all of them are in the dictionary
RENDERED = 3
SHOWN_CHARACTERS = 1200  # of one rendered sample
BINS = 24
BARS = " ▁▂▃▄▅▆▇█"
SUPERVISED_MARKS = ("[[", "]]")


@dataclass(frozen=True)
class BadSample:
    """A record that cannot be trained on: its index, its origin and the reason."""

    index: int
    origin: str
    reason: str


@dataclass(frozen=True)
class LengthSummary:
    """Statistics of sample lengths in tokens, before truncation.

    Args:
        minimum, median, p95, maximum: in tokens; the percentiles are lengths that occur (nearest rank).
        histogram: samples in each of BINS equal stretches from `minimum` to `maximum`.
    """

    minimum: int
    median: int
    p95: int
    maximum: int
    histogram: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> LengthSummary | None:
        """Compute the statistics; None if there are no lengths."""
        if not lengths:
            return None
        low, median, p95, high = np.percentile(lengths, (0, 50, 95, 100), method="inverted_cdf").tolist()
        counts, _ = np.histogram(lengths, BINS, (low, high + 1))
        return cls(low, median, p95, high, tuple(counts.tolist()))

    def line(self) -> str:
        """The histogram as bars; a stretch with any sample has one."""
        top = max(self.histogram)
        steps = len(BARS) - 1
        return "".join(BARS[-(-count * steps // top)] for count in self.histogram)


@dataclass(frozen=True)
class RenderedSample:
    """A rendered sample: text pieces in order, each supervised or not.

    An image's placeholders are shown as ``<image x256>``.
    """

    origin: str
    parts: tuple[tuple[str, bool], ...]

    def text(self) -> str:
        """The whole text, with supervised parts between SUPERVISED_MARKS."""
        begin, end = SUPERVISED_MARKS
        return "".join(f"{begin}{text}{end}" if is_supervised else text for text, is_supervised in self.parts)


@dataclass
class DataReport:
    """Result of a data check.

    Args:
        num_samples: records in the data.
        max_tokens: samples with more are cut at their end.
        bad: records that cannot be trained on.
        lengths: of the good ones; None if there are none.
        too_long: origins of good samples with more than `max_tokens`.
        num_text_only: good samples without an image.
        num_images, num_tokens, num_supervised_tokens: of the good samples, after they were cut.
        rendered: RENDERED samples: without images, with one, with several, then any others.
        unused: members of shards that belong to no record.
    """

    num_samples: int
    max_tokens: int
    bad: list[BadSample] = field(default_factory=list)
    lengths: LengthSummary | None = None
    too_long: list[str] = field(default_factory=list)
    num_text_only: int = 0
    num_images: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    rendered: list[RenderedSample] = field(default_factory=list)
    unused: list[UnusedMember] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if there is no bad record."""
        return not self.bad

    @property
    def good(self) -> Sequence[int]:
        """Indices of the samples that can be trained on: for :meth:`fastvlm.training.data.samples.Samples.chosen`."""
        bad = {sample.index for sample in self.bad}
        return [index for index in range(self.num_samples) if index not in bad]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        return {**asdict(self), "is_good": self.is_good}

    def text(self) -> str:
        """The report as plain text."""
        return "\n".join([*self._summary(), *self._problems(), *self._rendered_lines()])

    def _summary(self) -> Iterator[str]:
        num_good = self.num_samples - len(self.bad)
        yield f"{self.num_samples} samples: {num_good} good, {len(self.bad)} bad"
        yield f"images: {self.num_images}; samples without one: {self.num_text_only}"
        if self.lengths is None:
            return
        lengths = self.lengths
        yield (
            f"tokens a sample: {lengths.minimum} least, {lengths.median} median, {lengths.p95} 95th percentile, "
            f"{lengths.maximum} most"
        )
        yield f"    {lengths.minimum} |{lengths.line()}| {lengths.maximum}"
        share = 100 * self.num_supervised_tokens / self.num_tokens
        yield f"{self.num_tokens} tokens in all; {self.num_supervised_tokens} of them supervised ({share:.1f} %)"

    def _problems(self) -> Iterator[str]:
        if self.too_long:
            yield f"longer than max_tokens ({self.max_tokens}), will be cut at their end: {len(self.too_long)}"
            yield from _listed(self.too_long)
        if self.bad:
            yield f"bad: {len(self.bad)}"
            yield from _listed([f"{sample.origin}: {sample.reason}" for sample in self.bad])
        if self.unused:
            yield f"members of shards that are not used: {len(self.unused)}"
            yield from _listed([f"{member.origin}: {member.reason}" for member in self.unused])

    def _rendered_lines(self) -> Iterator[str]:
        begin, end = SUPERVISED_MARKS
        for sample in self.rendered:
            text = sample.text()
            yield ""
            yield f"{sample.origin} (supervised: {begin}...{end})"
            shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"
            yield from (f"    {line}" for line in shown.splitlines())


def _listed(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"    {line}" for line in lines[:LISTED])
    if len(lines) > LISTED:
        yield f"    and {len(lines) - LISTED} more (--json lists all)"


def check_data(
    samples: Sequence[Sample], dataset: SupervisedDataset, on_progress: Callable[[int, int], None] | None = None
) -> DataReport:
    """Read and tokenize every record and open all its images; trains and writes nothing.

    Args:
        samples: what the dataset holds.
        dataset: tokenizes the samples.
        on_progress: called with (samples done, samples) now and then.
    """
    report = DataReport(len(samples), dataset.max_tokens, unused=list(getattr(samples, "unused", ())))
    lengths, by_kind, others = array("Q"), dict[int, RenderedSample](), list[RenderedSample]()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for chunk in _chunks(dataset):
            problems = pool.map(partial(_problem, dataset), [sample for _, sample, _ in chunk])
            for (index, sample, ids), problem in zip(chunk, problems, strict=True):
                try:
                    if problem or isinstance(sample, BadRecordError):
                        raise DataError(problem)
                    tokens = dataset.supervise_ids(sample, ids)
                except FastVlmError as error:
                    report.bad.append(BadSample(index, sample.origin, str(error)))
                    continue
                lengths.append(tokens.num_tokens)
                _count(report, sample, tokens)
                kind = min(len(sample.images), 2)
                if kind not in by_kind:
                    by_kind[kind] = rendered(dataset, sample, tokens)
                elif len(others) < RENDERED:
                    others.append(rendered(dataset, sample, tokens))
            if on_progress is not None:
                on_progress(chunk[-1][0] + 1, len(samples))
    report.lengths, report.rendered = LengthSummary.of(lengths), [*by_kind.values(), *others][:RENDERED]
    return report


def _count(report: DataReport, sample: Sample, tokens: Supervised) -> None:
    if tokens.num_tokens > report.max_tokens:
        report.too_long.append(sample.origin)
    report.num_text_only += not sample.images
    report.num_images += len(sample.images)
    report.num_tokens += len(tokens.input_ids)
    report.num_supervised_tokens += tokens.num_supervised


_Row = tuple[int, Sample | BadRecordError, list[int]]


def _chunks(dataset: SupervisedDataset) -> Iterator[list[_Row]]:
    """Rows as :meth:`SupervisedDataset.tokenized` gives them, CHUNK at a time."""
    for _, rows in groupby(dataset.tokenized(), key=lambda row: row[0] // CHUNK):
        yield list(rows)


def _problem(dataset: SupervisedDataset, sample: Sample | BadRecordError) -> str:
    """Why a record cannot be read, or its first bad image cannot be opened; "" if all can."""
    if isinstance(sample, BadRecordError):
        return sample.reason
    number = 0
    try:
        refuse_missing(sample.images)
        for number, source in enumerate(sample.images, 1):  # noqa: B007 - used by the handler
            open_image(source, limits=dataset.processor.image_processor.image_limits)
    except ImageError as error:
        return f"image {number}: {error}" if number else str(error)
    return ""


def rendered(dataset: SupervisedDataset, sample: Sample, tokens: Supervised) -> RenderedSample:
    """Decode a sample's tokens into supervised and unsupervised text."""
    processor, count = dataset.processor, dataset.tokens_per_image
    places = re.compile(f"(?:{re.escape(processor.image_token)}){{{count}}}")
    parts: list[tuple[str, bool]] = []
    pairs = zip(tokens.input_ids, tokens.labels, strict=True)
    for is_supervised, stretch in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in stretch]
        text = str(processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        parts.append((places.sub(f"{processor.image_token[:-1]} x{count}>", text), is_supervised))
    return RenderedSample(sample.origin, tuple(parts))
