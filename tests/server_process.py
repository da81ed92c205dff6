"""A real server in a process of its own, and ways to ask it."""

from __future__ import annotations

import atexit
import base64
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
from warm_process import PROCESSES

START_S = 240  # a busy machine takes its time to open a model
ROOT = Path(__file__).parents[1]


def data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def example(name: str) -> str:
    return data_uri(ROOT / "examples" / f"{name}.png")


def question(text: str, *urls: str, role: str = "user") -> dict:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}


def _run(arguments: list[str], log: str) -> None:
    """`fastvlm serve` with its stderr in the file `log`; runs in the new process."""
    for name in [name for name in os.environ if name.startswith("FASTVLM_SERVE")]:
        del os.environ[name]
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from fastvlm.cli.main import run

    sys.argv = ["fastvlm", "serve", *arguments]
    run()


def _start(*arguments: object) -> tuple[multiprocessing.process.BaseProcess, Path]:
    file, log = tempfile.mkstemp(suffix=".log")
    os.close(file)
    process = PROCESSES.Process(target=_run, args=(list(map(str, arguments)), log), daemon=True)
    process.start()
    atexit.register(Path(log).unlink)
    return process, Path(log)


def refused_start(*arguments: object) -> tuple[int | None, str]:
    """Exit code and stderr of a server that does not start."""
    process, log = _start(*arguments)
    process.join(START_S)
    return process.exitcode, log.read_text()


class Server:
    """`fastvlm serve` on a free port; as a context manager it stops at the end, and must do so without a traceback."""

    def __init__(self, *arguments: object, model: object = "mini", wait: bool = True) -> None:
        self.process, self._log = _start("--model", model, "--port", 0, *arguments)
        self.url = self._until(self._address)
        self.client = httpx.Client(base_url=self.url, timeout=START_S)
        if wait:
            self._until(lambda: self.client.get("/ready").status_code == 200 or None)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        assert self.stop() == 0, self.lines
        assert "Traceback" not in "".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """What it has written to stderr."""
        return self._log.read_text().splitlines(keepends=True)

    def _address(self) -> str | None:
        found = re.search(r"http://[\d.]+:\d+", "".join(self.lines))
        return found and found[0]

    def _until(self, condition):
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            result = condition()
            if result is not None:
                return result
            if not self.process.is_alive():
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {''.join(self.lines)}")

    def until_line(self, words: str) -> None:
        """Wait for a line on stderr that holds `words`."""
        self._until(lambda: any(words in line for line in self.lines) or None)

    def chat(self, *messages: dict, **settings) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": "mini", "messages": messages, **settings})

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        page = self.client.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if re.match(rf"{name}(\{{| )", line))

    def is_idle(self) -> bool:
        return self.metric("fastvlm_slots_running") == self.metric("fastvlm_queue_waiting") == 0

    def until_idle(self, limit_s: float = 60) -> None:
        end_s = time.monotonic() + limit_s
        while not self.is_idle():
            assert time.monotonic() < end_s, "slots are still taken"
            time.sleep(0.02)

    def children(self) -> list[int]:
        """Ids of the processes that it started: its image decoders (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(child) for task in tasks for child in task.read_text().split())

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, number)

    def wait(self, limit_s: float = 120) -> int | None:
        """The exit code, once it has ended."""
        self.process.join(limit_s)
        return self.process.exitcode

    def stop(self, limit_s: float = 120) -> int | None:
        """SIGTERM; the exit code."""
        if self.process.is_alive():
            self.signal(signal.SIGTERM)
        try:
            return self.wait(limit_s)
        finally:
            self.process.kill()
            self.client.close()
