"""Bookkeeping of `fastvlm caption` without a model: rows a second, and resident memory over a long run.

    .venv/bin/python benchmarks/captioning.py --rows 1000000

A Parquet file with as many tiny images is captioned by a captioner that answers at once, so that all that is measured
is reading, queues, journal, parts and progress. The resident set is read after each tenth of the rows; it must not
grow. The same run is then begun again, to measure how fast a resumed run passes rows that it has. Ends with one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastvlm.captioning import Answer, Progress, Prompt, Row, caption

GROUP_ROWS = 10_000


class Instant:
    """A captioner that answers at once."""

    num_concurrent = 16
    identity: Mapping[str, Any] = {"captioner": "instant"}

    async def __aenter__(self) -> Instant:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def answer(self, row: Row, image: bytes, prompts: Sequence[Prompt]) -> list[Answer]:
        """A sentence of usual length for each prompt."""
        return [Answer(f"A picture of {len(image)} bytes that is called {row.id}.", None, "stop", 12, 1.0)] * len(
            prompts
        )


def write_rows(file: Path, num_rows: int) -> None:
    """A Parquet file of `num_rows` ids and images of 64 bytes."""
    schema = pa.schema({"id": pa.string(), "image": pa.binary()})
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, num_rows, GROUP_ROWS):
            numbers = range(start, min(start + GROUP_ROWS, num_rows))
            rows = {"id": [f"image-{number:09d}" for number in numbers], "image": [b"x" * 64] * len(numbers)}
            writer.write_table(pa.table(rows, schema=schema))


def resident_mb() -> float:
    """Resident set of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(num_rows: int, kind: str, folder: Path) -> dict[str, Any]:
    """Rates of a first and of a resumed run, and resident sets of the first."""
    write_rows(folder / "rows.parquet", num_rows)
    sets_mb: list[float] = []

    def on_progress(progress: Progress) -> None:
        if progress.num_images >= len(sets_mb) * num_rows / 10:
            sets_mb.append(round(resident_mb(), 1))

    given, out = str(folder / "rows.parquet"), folder / "out"
    begun_cpu_s = time.process_time()
    first = caption(given, out, "Describe the image.", Instant(), format=kind, on_progress=on_progress)
    cpu_s, begun_s = time.process_time() - begun_cpu_s, time.monotonic()
    again = caption(given, out, "Describe the image.", Instant(), format=kind)
    assert (first.images, again.images, again.kept) == (num_rows, 0, num_rows)  # noqa: S101  # else nothing was measured
    return {
        "rows": num_rows,
        "format": kind,
        "rows_per_s": round(first.images_per_s),
        "cpu_us_per_row": round(1e6 * cpu_s / num_rows),
        "resumed_rows_per_s": round(num_rows / (time.monotonic() - begun_s)),
        "resident_mb": sets_mb,
        "growth_mb": round(max(sets_mb[2:], default=0) - min(sets_mb[2:], default=0), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("jsonl", "parquet", "webdataset"), default="jsonl")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(arguments.rows, arguments.format, Path(folder))) + "\n")


if __name__ == "__main__":
    main()
