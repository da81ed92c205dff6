"""A real server in a process of its own, as a user starts it, and ways to ask it."""

from __future__ import annotations

import atexit
import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

START_S = 240  # a busy machine takes its time to import torch
ROOT = Path(__file__).parents[1]


def data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def example(name: str) -> str:
    return data_uri(ROOT / "examples" / f"{name}.png")


def question(text: str, *urls: str, role: str = "user") -> dict:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}


class Server:
    """`fastvlm serve` on a free port; `lines` is what it said on stderr."""

    def __init__(self, *arguments: object, model: object = "mini", wait: bool = True, **environment: str) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FASTVLM_SERVE"))}
        command = [sys.executable, "-m", "fastvlm", "serve", "--model", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**plain, "HF_HUB_OFFLINE": "1", **environment},
        )
        atexit.register(self.process.kill)  # of a test that failed before it stopped its server
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self._until(self._address)
        self.client = httpx.Client(base_url=self.url, timeout=START_S)
        if wait:
            self._until(lambda: self.client.get("/ready").status_code == 200 or None)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)

    def _address(self) -> str | None:
        found = re.search(r"http://[\d.]+:\d+", "".join(self.lines))
        return found and found[0]

    def _until(self, condition):
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            result = condition()
            if result is not None:
                return result
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {''.join(self.lines)}")

    def until_told(self, words: str) -> None:
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

    def stop(self, limit_s: float = 120) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            self.process.stdout.close()
            self.process.stderr.close()
            self.client.close()
