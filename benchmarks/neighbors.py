# ruff: noqa: PLC0415, S101, S603, T201 - a script; the worker sets its environment before it imports torch
"""Engines side by side on the same cores: the throughput of each, against half of what one has alone.

    python benchmarks/neighbors.py mini --seconds 10 --rounds 3

Each engine is a process with as many threads as there are cores, four replies at a time, images that it has not seen.
Rounds of one engine and of two alternate, so that other programs disturb both. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from fastvlm.backends.native.openmp import configure_openmp

STREAMS = 4
TOKENS = 32
SIDE = 64  # of the noise that is asked about; it is enlarged to the model's size


def work(model: str) -> None:
    """One engine: for each line with a number of seconds, answer for so long; then write the images per second."""
    configure_openmp()
    from fastvlm import FastVLM

    with FastVLM(model, num_slots=STREAMS) as opened, ThreadPoolExecutor(STREAMS) as clients:
        answer_until(opened, clients, time.monotonic())  # warm
        print("ready", flush=True)
        for line in sys.stdin:
            start = time.monotonic()
            count = answer_until(opened, clients, start + float(line))
            print(count / (time.monotonic() - start), flush=True)


def answer_until(model, clients: ThreadPoolExecutor, end: float) -> int:
    """The number of images that were answered about; at least one for each client."""

    def client(seed: int) -> int:
        import numpy as np

        numbers, count = np.random.default_rng([seed, random.getrandbits(32)]), 0
        while not count or time.monotonic() < end:
            image = numbers.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            model.ask(image, "Describe the image.", max_new_tokens=TOKENS, ignore_eos=True)
            count += 1
        return count

    return sum(clients.map(client, range(STREAMS)))


class Engine:
    """A process that runs :func:`work`."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, __file__, model, "--worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._stdout.readline() == "ready\n", "an engine did not start"

    @property
    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def start(self, seconds: float) -> None:
        """Let it answer for so long."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)

    def rate(self) -> float:
        """Images per second of what was started."""
        return float(self._stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure(model: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Images per second: of one engine alone, and of each of two, in the order of the rounds."""
    engines = [Engine(model) for _ in range(2)]
    rates: dict[str, list[float]] = {"alone": [], "side_by_side": []}
    try:
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for name, some in (("alone", engines[number % 2 :][:1]), ("side_by_side", engines)):
                for engine in some:
                    engine.start(seconds)
                rates[name] += [engine.rate() for engine in some]
    finally:
        for engine in engines:
            engine.stop()
    return rates


def main() -> None:
    """Measure, and write a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model)
        return
    rates = measure(options.model, options.seconds, options.rounds)
    half = statistics.median(rates["alone"]) / 2
    print("| engines | images/s of each, median | range | of half of one alone |\n| --- | --- | --- | --- |")
    for name, some in rates.items():
        median = statistics.median(some)
        print(f"| {name} | {median:.2f} | {min(some):.2f} to {max(some):.2f} | {median / half:.2f} |")
    print(json.dumps({"rates": rates, "side_by_side_of_half": statistics.median(rates["side_by_side"]) / half}))


if __name__ == "__main__":
    main()
