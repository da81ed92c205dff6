"""Worker processes as the parent sees them: start, one command and answer at a time with a time limit, end.

Each worker has a process group of its own: Ctrl-C reaches only the parent, and the worker's children end with it. A
worker whose parent has ended reads the end of its stdin, and ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TextIO

from fastvlm.bench.worker import Measured
from fastvlm.errors import MeasurementError

WORKER = (sys.executable, "-m", "fastvlm.bench.worker")
_END_S = 3.0  # for a worker to leave by itself
_LAST_WORDS = 300  # characters of stderr that an error quotes


class WorkerProcess:
    """A running worker process.

    Args:
        name: for messages.
        arguments: its kind and options, after the program.
        program: what runs workers.
        threads: for OMP_NUM_THREADS; 0 leaves it alone.
        environment: further variables.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        program: Sequence[str] = WORKER,
        threads: int = 0,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the worker lives
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            [*program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {}), **environment},
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101  # they are pipes
        self._stdin = self._process.stdin
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None

    def ask(self, command: dict[str, Any], timeout_s: float) -> Measured:
        """The answer to one command.

        Raises:
            MeasurementError: the worker could not do it, has died, or did not answer in time; `is_alive` tells which.
        """
        self._write(json.dumps(command) + "\n")
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.end()
            message = f"{self.name} did not answer {command['do']!r} within {timeout_s:.0f} s and was ended."
            raise MeasurementError(message) from None
        if line is None:
            self._lines.put(None)  # the next command fails in the same way
            raise MeasurementError(self._how_it_ended(command["do"]))
        return self._understood(line, command["do"])

    def end(self) -> None:
        """Kill it and its children."""
        self._signal_group(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        self._process.wait()
        self._reader.join()
        with contextlib.suppress(OSError):  # unwritten text is lost with the worker
            self._stdin.close()
        self._errors.close()

    def leave(self) -> None:
        """Close its stdin and wait a moment; then kill it."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # `end` is for that
            self._stdin.close()
            self._process.wait(_END_S)
        self.end()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # it has died: the end of its answers says so
            self._stdin.write(text)
            self._stdin.flush()

    def _read(self, stdout: TextIO) -> None:
        with stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put(None)

    def _understood(self, line: str, command: str) -> Measured:
        try:
            answer = json.loads(line)
            is_ok = answer.pop("ok")
            if is_ok:
                return Measured(**answer)
        except (ValueError, TypeError, KeyError, AttributeError):
            self.end()
            raise MeasurementError(f"{self.name} answered {command!r} with {line.strip()[:80]!r}.") from None
        raise MeasurementError(f"{self.name}: {answer['error']}")

    def _how_it_ended(self, command: str) -> str:
        code = self._process.wait()
        why = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _LAST_WORDS))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{self.name} ended {why} during {command!r}" + (f": {lines[-1].strip()}" if lines else ".")

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, number)
            else:
                self._process.kill()


@contextmanager
def all_ended(workers: dict[str, WorkerProcess]) -> Iterator[None]:
    """End all processes of `workers` on the way out, also after an error."""
    try:
        yield
    except BaseException:
        for worker in workers.values():
            worker.end()
        raise
    for worker in workers.values():
        worker.leave()
