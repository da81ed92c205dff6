"""The peak is the process's own, and grows with what it holds."""

import subprocess
import sys

SHOW = "from fastvlm.bench.memory import peak_bytes; before = peak_bytes(); {work}; print(peak_bytes() - before)"


def peak_of(work: str) -> int:
    done = subprocess.run([sys.executable, "-c", SHOW.format(work=work)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_is_held_counts_and_stays_counted_when_it_is_freed():
    assert 90e6 < peak_of("held = b'x' * 100_000_000; del held") < 130e6
    assert peak_of("pass") < 5e6


def test_a_large_parent_is_not_counted():
    held = b"x" * 300_000_000
    code = "from fastvlm.bench.memory import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if sys.platform == "linux":
        assert int(done.stdout) < 150e6
    assert len(held) == 300_000_000
