"""Dataset of tokenized samples: `input_ids`, `labels` (replies only) and `pixel_values`.

The processor that is used at inference makes the ids, so every prompt is a prefix of a training sequence. The
assistant's texts and the ``<|im_end|>`` after each are supervised (Apple's ``qwen_2`` also supervises the line break
after it). They are found by token ids, because the processor refuses texts that contain ``<|im_start|>`` or
``<|im_end|>``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvlm.errors import DataError, FastVlmError, ImageError, UsageError
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.images import open_image
from fastvlm.processing.replies import ReplyFinder, short_ids_of
from fastvlm.training.data.digest import row_digest
from fastvlm.training.data.samples import BadRecordError, ImageSource, Sample
from fastvlm.training.grounding.rows import GroundingColumns

IGNORED = -100  # the label that torch's cross-entropy leaves out
CHUNK = 256  # samples that are tokenized together
PARALLEL_FROM_CHUNKS = 16  # with fewer, processes take longer to start than to work


@dataclass(frozen=True)
class Supervised:
    """Token ids and labels of a sample.

    Args:
        input_ids: T ids, N placeholders an image.
        labels: T labels: the id where it is supervised, IGNORED elsewhere.
        num_images: the sample's first images, whose placeholders are among the ids.
        num_tokens: tokens of the whole sample, more than T if it was cut.
    """

    input_ids: list[int]
    labels: list[int]
    num_images: int
    num_tokens: int

    @property
    def num_supervised(self) -> int:
        """Number of tokens with a label."""
        return sum(label != IGNORED for label in self.labels)


class SupervisedDataset(Dataset[dict[str, Tensor]]):
    """Map-style dataset of rows for :class:`fastvlm.training.data.collation.Collator`; works in DataLoader workers.

    Args:
        samples: :func:`fastvlm.training.data.samples.open_samples`'s, or any sequence of samples.
        processor: the one that will be used at inference: its chat template, tokenizer, image fit.
        max_tokens: longest row. A longer sample is cut at its end, never inside an image's placeholders.
        image_size: pixels of the processed image, a side or (height, width); None for the processor's own.
        grounded: makes columns of the samples' objects and looks; None for rows without.

    Raises:
        UsageError: `max_tokens` is not positive.
        ConfigError: a chat template that cannot be supervised; an image size that is not a multiple of the stride.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: FastVlmProcessor,
        *,
        max_tokens: int,
        image_size: int | tuple[int, int] | None = None,
        grounded: GroundingColumns | None = None,
    ) -> None:
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; expected at least 1.")
        self.samples, self.processor = samples, processor
        self.max_tokens, self.image_size, self.grounded = max_tokens, image_size, grounded
        self.tokens_per_image = int(processor.image_processor.num_visual_tokens(image_size))
        self._image_id = int(processor.image_token_id)
        self._replies = ReplyFinder(processor)
        self._measured: tuple[array[int], array[int]] | None = None  # lengths and digests of all rows

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Tokenize a sample and open its images.

        Returns:
            `input_ids`, `labels` int64 (T,), and `pixel_values` float32 (I, 3, H, W) in [0, 1] if it has images; with
            `grounded` its columns.

        Raises:
            BadRecordError: a record, a text or an image that is bad.
        """
        sample = self.samples[index]
        try:
            tokens = self.supervise(sample)
            row = {"input_ids": torch.tensor(tokens.input_ids), "labels": torch.tensor(tokens.labels)}
            images = self._opened(sample.images[: tokens.num_images])
            if images:
                row.update(self.processor.image_processor(images, image_size=self.image_size, return_tensors="pt"))
            if self.grounded is not None:
                sizes = [image.size for image in images]
                height, width = row["pixel_values"].shape[2:] if images else (0, 0)
                row.update(self.grounded.columns(sample, tokens.input_ids, sizes, (height, width)))
        except FastVlmError as error:
            raise BadRecordError.at(sample.origin, error) from error
        return row

    def _opened(self, images: Sequence[ImageSource]) -> list[Image.Image]:
        refuse_missing(images)
        return [open_image(source, limits=self.processor.image_processor.image_limits) for source in images]

    def supervise(self, sample: Sample) -> Supervised:
        """Token ids and labels of a sample, without opening images. Raises FastVlmError with the reason alone."""
        return self.supervise_ids(sample, short_ids_of(self.processor, [self._text(sample)])[0])

    def supervise_ids(self, sample: Sample, short_ids: Sequence[int]) -> Supervised:
        """As :meth:`supervise`, from ids in which an image has one placeholder. Raises FastVlmError."""
        image_id = self._image_id
        ids: list[int] = []
        for token in short_ids:
            ids += [token] * self.tokens_per_image if token == image_id else [token]
        if ids.count(image_id) != len(sample.images) * self.tokens_per_image:
            raise DataError(f"it has {short_ids.count(image_id)} place(s) for images and {len(sample.images)} image(s)")
        spans = list(self._replies.spans(ids))
        num_replies = sum(message["role"] == "assistant" for message in sample.messages)
        if len(spans) != num_replies:
            raise DataError(
                f"{len(spans)} of its {num_replies} replies follow the prompt's own tokens; does a reply begin with a "
                "blank line?"
            )
        end = self._cut(ids)
        labels = [IGNORED] * end
        for start, past in spans:
            labels[start:past] = ids[start : min(past, end)] if start < end else []
        if all(label == IGNORED for label in labels):
            raise DataError(
                f"it has {len(ids)} tokens, and none of the first {end} is the assistant's. Raise max_tokens "
                f"(it is {self.max_tokens}; --set max_tokens=N), or leave the sample out"
            )
        return Supervised(ids[:end], labels, ids[:end].count(image_id) // self.tokens_per_image, len(ids))

    def _cut(self, ids: Sequence[int]) -> int:
        """Number of ids to keep: `max_tokens`, or fewer so that no image is cut in the middle."""
        if len(ids) <= self.max_tokens:
            return len(ids)
        num_placeholders = list(ids[: self.max_tokens]).count(self._image_id)
        return self.max_tokens - num_placeholders % self.tokens_per_image

    def lengths(self, workers: int = 0) -> Sequence[int]:
        """Number of tokens of every row, at most `max_tokens`; no image is opened. Computed once, which takes a while.

        Args:
            workers: processes that tokenize; 0: this one.

        Raises:
            BadRecordError: the first sample that is bad.
        """
        return self._measure(workers)[0]

    def digest(self, workers: int = 0) -> dict[str, Any]:
        """`num_samples`, and the hexadecimal `digest` of all in order, computed with :meth:`lengths`."""
        digests = self._measure(workers)[1]
        return {"num_samples": len(self), "digest": hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()}

    def _measure(self, workers: int) -> tuple[array[int], array[int]]:
        if self._measured is None:
            is_worth_it = len(self) > CHUNK * PARALLEL_FROM_CHUNKS
            loader = DataLoader(_Chunks(self), batch_size=None, num_workers=workers if is_worth_it else 0)
            lengths, digests = array("q"), array("q")
            for chunk in loader:
                lengths.extend(chunk[0].tolist())
                digests.extend(chunk[1].tolist())
            self._measured = lengths, digests
        return self._measured

    def quick_length(self, sample: Sample, short_ids: Sequence[int]) -> int:
        """Number of tokens of a sample's row, from ids in which an image has one placeholder. Raises BadRecordError."""
        num_tokens = len(short_ids) + short_ids.count(self._image_id) * (self.tokens_per_image - 1)
        if num_tokens <= self.max_tokens:
            return num_tokens
        try:
            return len(self.supervise_ids(sample, short_ids).input_ids)
        except FastVlmError as error:
            raise BadRecordError.at(sample.origin, error) from error

    def tokenized(
        self, first: int = 0, past: int | None = None
    ) -> Iterator[tuple[int, Sample | BadRecordError, list[int]]]:
        """Yield (index, sample or its error, ids) of samples `first` to before `past`, tokenized in batches.

        In the ids an image has one placeholder, as :meth:`supervise_ids` takes them.
        """
        past = len(self) if past is None else past
        for begin in range(first, past, CHUNK):
            rows = [self._readable(index) for index in range(begin, min(begin + CHUNK, past))]
            texts = [text for _, text in rows if text]
            ids = iter(short_ids_of(self.processor, texts) if texts else [])
            for index, (sample, text) in enumerate(rows, begin):
                yield index, sample, next(ids) if text else []

    def _readable(self, index: int) -> tuple[Sample | BadRecordError, str]:
        """(sample, its rendered text), or (its error, "")."""
        try:
            sample = self.samples[index]
            return sample, self._text(sample)
        except BadRecordError as error:
            return error, ""
        except FastVlmError as error:
            return BadRecordError.at(sample.origin, error), ""

    def _text(self, sample: Sample) -> str:
        return str(self.processor.apply_chat_template(sample.messages))


class _Chunks(Dataset[Tensor]):
    """Lengths and digests (2, CHUNK) int64 of CHUNK rows, for a DataLoader's processes. Raises BadRecordError."""

    def __init__(self, rows: SupervisedDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return (len(self.rows) + CHUNK - 1) // CHUNK

    def __getitem__(self, chunk: int) -> Tensor:
        lengths, digests = [], []
        for _, sample, short_ids in self.rows.tokenized(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.rows))):
            if isinstance(sample, BadRecordError):
                raise sample
            lengths.append(self.rows.quick_length(sample, short_ids))
            digests.append(row_digest(sample))
        return torch.tensor([lengths, digests])


def refuse_missing(images: Sequence[ImageSource]) -> None:
    """Raise ImageError, with the whole path that was tried, where an image's file is not there."""
    for number, source in enumerate(images, 1):
        if isinstance(source, Path) and not source.is_file():
            raise ImageError(f"image {number}: there is no file {source}; is images_in right?")
