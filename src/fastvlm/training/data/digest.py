"""Digest of a sample, to detect changed data when a run is resumed.

It covers the messages, the grounding, and of each image the path, the bytes or data URI in the record, the number of
bytes in a shard, or, in Arrow and Parquet files, the file's name and size. No image file is read, so an image that was
replaced under its path, or by one of the same size in a shard, is not detected.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from fastvlm.training.data.samples import ImageSource, Sample

_ROW_BYTES = 8


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
    if isinstance(image, (bytes, bytearray)):
        return hashlib.blake2b(image, digest_size=_ROW_BYTES).hexdigest()
    if isinstance(image, (str, Path)):
        return str(image)
    return str(getattr(image, "identity", type(image).__name__))
