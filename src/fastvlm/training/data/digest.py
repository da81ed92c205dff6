"""Digest of a run's samples, compared when the run is resumed.

Of each sample the digest takes its messages, what it says of objects and looks, and of its images the path, the bytes
or data URI in the record, the number of bytes in a shard, or, in Arrow and Parquet files, the file's name and size. No
image is read, so one that was replaced under its path, or by one of the same size in a shard, is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.training.data.samples import ImageSource, Sample

_ROW_BYTES = 8


@dataclass(frozen=True)
class DataDigest:
    """Number of samples and a hexadecimal digest of all of them in order."""

    num_samples: int
    digest: str


def row_digest(sample: Sample) -> int:
    """64-bit signed digest of a sample's messages, images and grounding."""
    grounding = None
    if sample.grounding is not None:
        objects = sample.grounding.objects
        looks = [[look.reply, look.at, look.objects, sorted(look.words)] for look in sample.grounding.looks]
        grounding = [None if objects is None else [asdict(entry) for entry in objects], looks]
    content = [sample.messages, [_identity(image) for image in sample.images], grounding]
    encoded = json.dumps(content, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=_ROW_BYTES).digest(), "little", signed=True)


def _identity(image: ImageSource) -> str:
    """Identity of an image: its bytes' digest, its path, or its place in a file; no file is read."""
    if isinstance(image, (bytes, bytearray)):
        return hashlib.blake2b(image, digest_size=_ROW_BYTES).hexdigest()
    if isinstance(image, (str, Path)):
        return str(image)
    return str(getattr(image, "identity", type(image).__name__))


def digest_of_rows(rows: array[int]) -> DataDigest:
    """Digest of all samples from their :func:`row_digest`s (int64)."""
    return DataDigest(len(rows), hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest())


def compare_data(stored: Mapping[str, Any] | None, now: Mapping[str, DataDigest], *, allows_change: bool) -> None:
    """Refuse to resume a run with other samples than it was started with.

    Args:
        stored: what :func:`dataclasses.asdict` made of the digests by name ("data", "eval.data") when the run began;
            None for a run that was begun before they were stored.
        now: of the samples that are there now.
        allows_change: warn instead.

    Raises:
        UsageError: they differ.
    """
    if stored is None:
        warnings.warn(
            "The run was started by an earlier version that did not record its samples, so changes cannot be "
            "detected. They are recorded from now on.",
            stacklevel=1,
        )
        return
    for name, digest in now.items():
        if stored.get(name) == asdict(digest):
            continue
        before = (stored.get(name) or {}).get("num_samples", 0)
        what = f"{before} samples before, {digest.num_samples} now"
        text = f"The samples of {name} are not those that the run was started with ({what})"
        if not allows_change:
            raise UsageError(
                f"{text}. Give the same samples, another --out, or --allow-changed-data to go on with these."
            )
        warnings.warn(f"{text}; it continues with the new ones.", stacklevel=1)
