"""Two hundred clients who behave badly, for as long as asked; then: did the server hold?

    python benchmarks/soak.py --seconds 300 --clients 200

Starts `fastvlm serve` on the mini. Clients ask, stream, hang up, read slowly, send broken pictures, oversized bodies
and malformed JSON. It ends with one JSON line, and with 1 if
- an accepted request ended in neither a full reply nor a clean error,
- an undisturbed reply differs from the offline engine's,
- the server's memory grew by more than 5 % after the first fifth of the time,
- the queue or a slot is not free in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

import fastvlm
from fastvlm.checkpoints.loading import pick_device
from fastvlm.engine.fast import fast_dtype

ROOT = Path(__file__).parents[1]
PICTURES = ("letter", "red_star", "shapes", "word", "objects", "five_shapes")
QUESTIONS = ("What is this?", "What letter is this?", "How many shapes are there?", "What color is it?")
TOKENS = 16
PATH = "/v1/chat/completions"
CLEAN = {400, 408, 413, 415, 429, 503, 504}


def body(picture: str, text: str) -> dict:
    """A request as a client sends it."""
    data = base64.b64encode((ROOT / "examples" / f"{picture}.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": text},
    ]
    return {"model": "mini", "max_tokens": TOKENS, "messages": [{"role": "user", "content": content}]}


def offline_replies() -> dict[tuple[str, str], str]:
    """What the engine says without a server."""
    engine = fastvlm.fast_engine(*fastvlm.load("mini", dtype=fast_dtype(pick_device())))
    replies = {}
    for picture in PICTURES:
        for text in QUESTIONS:
            items = [
                {"type": "image", "path": str(ROOT / "examples" / f"{picture}.png")},
                {"type": "text", "text": text},
            ]
            params = fastvlm.SamplingParams(max_new_tokens=TOKENS)
            replies[picture, text] = engine.generate([{"role": "user", "content": items}], params).text
    return replies


class Client:
    """One of many; `seen` counts how its requests ended, `faults` says what should not have happened."""

    def __init__(self, http: httpx.AsyncClient, expected: dict, seen: Counter, faults: list[str], seed: int) -> None:
        self.http, self.expected, self.seen, self.faults = http, expected, seen, faults
        self.random = random.Random(seed)  # noqa: S311 - no secret

    async def run(self, end_s: float) -> None:
        """Ask in all ways until `end_s`."""
        ways = (
            self.whole,
            self.stream,
            self.hang_up,
            self.read_slowly,
            self.bad_picture,
            self.oversized,
            self.malformed,
        )
        weights = (6, 6, 3, 1, 2, 1, 2)
        while time.monotonic() < end_s:
            [way] = self.random.choices(ways, weights)
            try:
                await way()
            except httpx.HTTPError as error:
                self.faults.append(f"{way.__name__}: {type(error).__name__} {error}")
                await asyncio.sleep(1)
            await asyncio.sleep(self.random.random())

    def _choice(self) -> tuple[str, str]:
        return self.random.choice(PICTURES), self.random.choice(QUESTIONS)

    def _note(self, way: str, status: int) -> bool:
        self.seen[f"{way} {status}"] += 1
        if status != 200 and status not in CLEAN:
            self.faults.append(f"{way}: status {status}")
        return status == 200

    def _compare(self, key: tuple[str, str], text: str) -> None:
        if text != self.expected[key]:
            self.faults.append(f"{key}: {text!r} instead of {self.expected[key]!r}")

    async def whole(self) -> None:
        """A whole reply, compared."""
        key = self._choice()
        response = await self.http.post(PATH, json=body(*key))
        if self._note("whole", response.status_code):
            self._compare(key, response.json()["choices"][0]["message"]["content"])

    async def stream(self, pause_s: float = 0.0) -> None:
        """A streamed reply, compared; it must end with [DONE]."""
        key, text, last = self._choice(), "", ""
        async with self.http.stream("POST", PATH, json={**body(*key), "stream": True}) as response:
            if not self._note("stream", response.status_code):
                await response.aread()
                return
            async for line in response.aiter_lines():
                if not line:
                    continue
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    text += json.loads(last)["choices"][0]["delta"].get("content", "")
                await asyncio.sleep(pause_s)
        if last != "[DONE]":
            self.faults.append(f"stream ended with {last[:100]}")
        self._compare(key, text)

    async def read_slowly(self) -> None:
        """The same, with pauses."""
        await self.stream(0.3)

    async def hang_up(self) -> None:
        """Leave after a moment, somewhere between sending and the last word."""
        try:
            await asyncio.wait_for(self.stream(), self.random.random() * 2)
        except asyncio.TimeoutError:
            self.seen["hung up"] += 1

    async def bad_picture(self) -> None:
        """Bytes that are no picture, or half of one."""
        asked = body(*self._choice())
        url = asked["messages"][0]["content"][0]["image_url"]
        url["url"] = self.random.choice(
            (url["url"][: len(url["url"]) // 8 * 4], "data:image/png;base64,AAAA", "file:///x")
        )
        response = await self.http.post(PATH, json=asked)
        self._note("bad picture", response.status_code)
        if response.status_code == 200:
            self.faults.append("a bad picture was answered")

    async def oversized(self) -> None:
        """More than a server takes."""
        headers = {"Content-Type": "application/json"}
        self._note("oversized", (await self.http.post(PATH, content=b"x" * (21 * 2**20), headers=headers)).status_code)

    async def malformed(self) -> None:
        """JSON that is none."""
        data = json.dumps(body(*self._choice())).encode()[: self.random.randrange(200)]
        response = await self.http.post(PATH, content=data, headers={"Content-Type": "application/json"})
        if response.status_code not in (400, 429):
            self.faults.append(f"malformed: status {response.status_code}")
        self.seen["malformed"] += 1


def memory_bytes(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def gauge(page: str, name: str) -> float:
    """The sum of a metric's samples."""
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


async def soak(url: str, pid: int, seconds: float, num_clients: int, expected: dict) -> dict:
    """All clients at once; what they saw."""
    seen: Counter = Counter()
    faults: list[str] = []
    memory = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_clients)
    start_s = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        clients = [Client(http, expected, seen, faults, seed) for seed in range(num_clients)]
        running = [asyncio.create_task(client.run(start_s + seconds)) for client in clients]
        while not all(task.done() for task in running):
            await asyncio.sleep(1)
            memory.append((time.monotonic() - start_s, memory_bytes(pid)))
        await asyncio.gather(*running)
        for _ in range(100):
            page = (await http.get("/metrics")).text
            left = gauge(page, "fastvlm_slots_running") + gauge(page, "fastvlm_queue_waiting")
            if not left:
                break
            await asyncio.sleep(0.1)
    warm = max(size for when, size in memory if when <= seconds / 5)
    growth = max(size for _, size in memory) / warm - 1
    if growth > 0.05:
        faults.append(f"memory grew by {100 * growth:.1f} %")
    if left:
        faults.append(f"{left:g} replies are still in the queue or in a slot")
    return {
        "seconds": seconds,
        "clients": num_clients,
        "seen": dict(sorted(seen.items())),
        "tokens": gauge(page, 'fastvlm_tokens_total{kind="completion"}'),
        "memory_mb": [round(warm / 1e6), round(max(size for _, size in memory) / 1e6)],
        "faults": len(faults),
        "first_faults": faults[:10],
    }


def main() -> int:
    """Start, soak, stop, tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=200)
    asked = parser.parse_args()
    expected = offline_replies()
    command = [sys.executable, "-m", "fastvlm", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own command
        url = server.stderr.readline().split(" at ")[1].split()[0]
        while httpx.get(f"{url}/ready").status_code != 200:
            time.sleep(0.5)
        try:
            result = asyncio.run(soak(url, server.pid, asked.seconds, asked.clients, expected))
        finally:
            server.terminate()
        result["exit_code"] = server.wait(120)
    sys.stdout.write(json.dumps(result) + "\n")
    return int(bool(result["faults"] or result["exit_code"]))


if __name__ == "__main__":
    sys.exit(main())
