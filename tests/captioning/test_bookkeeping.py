"""What a run costs besides its model: memory that does not grow, and rows a second of CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/captioning.py"


def measured(num_rows: int, kind: str) -> dict:
    command = [sys.executable, BENCHMARK, "--rows", str(num_rows), "--format", kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset"])
def test_memory_does_not_grow(kind):
    found = measured(12_000, kind)
    assert found["growth_mb"] < 30  # parts of 1,000 rows come and go, and pyarrow keeps freed memory for a while
    assert found["cpu_us_per_row"] < 2000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_rows():
    found = measured(1_000_000, "jsonl")
    assert found["growth_mb"] < 30
    assert 1e6 / found["cpu_us_per_row"] >= 5000  # rows for each second of CPU time: other processes do not count
