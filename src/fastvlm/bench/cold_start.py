"""Cold start: seconds from process start to the first byte of the answer, with a warm file cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from fastvlm.bench.worker import Measured
from fastvlm.errors import FastVlmError

NEW_TOKENS = 2


def ask_command(folder: str, image: str, question: str, device: str = "cpu", dtype: str = "auto") -> list[str]:
    """`fastvlm ask` with this Python."""
    ask = ["ask", image, question, "--model", folder, "--max-new-tokens", str(NEW_TOKENS), "--device", device]
    ask += ["--dtype", dtype]
    return [sys.executable, "-m", "fastvlm", *ask]


def transformers_command(
    folder: str, image: str, question: str, device: str = "cpu", dtype: str = "bfloat16"
) -> list[str]:
    """The same question by ``cold_transformers.py``."""
    asked = [folder, image, question, str(NEW_TOKENS), device, dtype]
    return [sys.executable, "-m", "fastvlm.bench.cold_transformers", *asked]


class ColdStart:
    """Starts a command and times the first byte of its output.

    Args:
        command: program and arguments; it writes its answer to stdout.
        threads: for OMP_NUM_THREADS; 0 for the default.
    """

    def __init__(self, command: Sequence[str], threads: int = 0) -> None:
        self.command = list(command)
        self.environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}

    def open(self) -> Measured:
        """Does nothing: every measurement starts a new process."""
        return Measured(0.0)

    def cold_start(self) -> Measured:
        """Seconds from the process's start to the first byte on its stdout; `parts` has those to its end.

        Raises:
            FastVlmError: it wrote nothing, or failed.
        """
        start_s = time.perf_counter()
        with subprocess.Popen(  # noqa: S603  # our own command line
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            bufsize=0,
        ) as process:
            assert process.stdout is not None and process.stderr is not None  # noqa: S101  # they are pipes
            first = process.stdout.read(1)
            first_s = time.perf_counter()
            process.stdout.read()
            errors = process.stderr.read().decode(errors="replace").strip()
        end_s = time.perf_counter()
        if not first or process.returncode:
            last_line = (errors.splitlines() or ["no message"])[-1]
            raise FastVlmError(f"{self.command[:4]} ended with exit code {process.returncode}: {last_line}")
        return Measured(first_s - start_s, {"to_the_end": end_s - start_s})
