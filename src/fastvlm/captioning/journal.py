"""Journal of a part: each answered row is appended at once, so that a killed run loses only the rows in work.

A record is one line of JSON and the image's bytes, if the output holds images. A record that is not whole, at the end
after a kill, is cut off when the journal is opened.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fastvlm.captioning.rows import Sample
from fastvlm.captioning.tables import as_json
from fastvlm.storage.write_errors import clear_write_errors


def remove_journal(path: Path) -> None:
    """Remove the journal at `path`, if it is there. Raises StorageError, UsageError."""
    with clear_write_errors(path):
        path.unlink(missing_ok=True)


class Journal:
    """Samples in a file, appended; opened anew it has those of the killed run.

    Attributes:
        samples: without their images, which stay in the file.

    Raises:
        StorageError, UsageError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples: list[Sample] = []
        self._images: list[tuple[int, int]] = []  # (offset, bytes) of each sample's image
        self._file: io.FileIO | None = None
        self._is_at_end = False  # of the records
        with clear_write_errors(path):
            path.touch()
            self._end = self._load()
            os.truncate(path, self._end)

    def append(self, sample: Sample) -> None:
        """Write a sample; it is in the system's memory when this returns, so that only a power failure loses it."""
        about = {"id": sample.id, "lines": sample.lines, "sidecar": sample.sidecar, "image_bytes": len(sample.image)}
        line = as_json(about).encode() + b"\n"
        with clear_write_errors(self._path):
            file = self._opened()
            if not self._is_at_end:
                file.seek(self._end)
                self._is_at_end = True
            rest = memoryview(line + sample.image)
            while rest:
                rest = rest[file.write(rest) :]
        self._remember(sample, self._end + len(line), len(sample.image))
        self._end += len(line) + len(sample.image)

    def replace(self, index: int, sample: Sample) -> None:
        """Put another sample in the place of one, until the part is written; not kept in the file."""
        self.samples[index] = sample
        self._images[index] = (0, 0)

    def with_images(self) -> Iterator[Sample]:
        """The samples with their images, read one by one."""
        for sample, (offset, num_bytes) in zip(self.samples, self._images, strict=True):
            image = sample.image
            if num_bytes:
                file = self._opened()
                file.seek(offset)
                self._is_at_end = False
                image = file.read(num_bytes)
            yield Sample(sample.id, sample.lines, image, sample.sidecar)

    def close(self, *, is_done: bool = False) -> None:
        """Close the file; remove it if its part is written."""
        if self._file is not None:
            self._file.close()
        if is_done:
            remove_journal(self._path)

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self._file = self._path.open("r+b", buffering=0)
        return self._file

    def _remember(self, sample: Sample, offset: int, num_bytes: int) -> None:
        self.samples.append(Sample(sample.id, sample.lines, b"", sample.sidecar))
        self._images.append((offset, num_bytes))

    def _load(self) -> int:
        """Read the whole records; return where the last of them ends."""
        end, size = 0, self._path.stat().st_size
        with self._path.open("rb") as file:
            for line in iter(file.readline, b""):
                try:
                    about = json.loads(line)
                    sample = Sample(about["id"], about["lines"], b"", about["sidecar"])
                    offset, num_bytes = end + len(line), int(about["image_bytes"])
                except (ValueError, KeyError, TypeError):
                    return end
                if not line.endswith(b"\n") or offset + num_bytes > size:
                    return end
                self._remember(sample, offset, num_bytes)
                end = offset + num_bytes
                file.seek(end)
        return end
