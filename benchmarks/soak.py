"""Two hundred clients who behave badly, for as long as asked; then: did the server hold?

    python benchmarks/soak.py --seconds 300 --clients 200 --term-after 40

Starts `fastvlm serve` on the mini. Clients ask, stream, hang up, read slowly, send broken pictures, oversized bodies
and malformed JSON. It ends with one JSON line, and with 1 if
- an accepted request ended in neither a full reply nor a clean error,
- an undisturbed reply differs from the offline engine's,
- the server's memory grew by more than 5 % after the first fifth of the time,
- the queue or a slot is not free in the end.

With --term-after a second server gets the same clients, and SIGTERM after so many seconds. Then it is a fault too if
- a streamed reply that had begun does not come to its end,
- a request from before the signal ends in neither a full reply nor a clean error,
- the server has not ended with code 0 when its grace period and what it needs to close are over.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

import fastvlm
from fastvlm.backends.local import fast_dtype
from fastvlm.hf.loading import pick_device

ROOT = Path(__file__).parents[1]
PICTURES = ("letter", "red_star", "shapes", "word", "objects", "five_shapes")
QUESTIONS = ("What is this?", "What letter is this?", "How many shapes are there?", "What color is it?")
TOKENS = 16
PATH = "/v1/chat/completions"
CLEAN = {400, 408, 413, 415, 429, 503, 504}
MARGIN_S = 2.0  # a request sent so shortly before the signal may not have been read from its connection
ENDING_S = 40  # the grace period, and the time to close


@dataclass
class State:
    """What all clients share: how requests ended, what should not have happened, and when the server had to end."""

    expected: dict[tuple[str, str], str]
    seen: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    term_s: float = math.inf

    def may_be_refused(self, sent_s: float) -> bool:
        """True for a request, sent at `sent_s`, that a server which is ending need not have taken."""
        return sent_s > self.term_s - MARGIN_S and time.monotonic() > self.term_s


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
    engine = fastvlm.Engine.from_model(*fastvlm.load("mini", dtype=fast_dtype(pick_device())))
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
    """One of many."""

    def __init__(self, http: httpx.AsyncClient, state: State, seed: int) -> None:
        self.http, self.state = http, state
        self.seen, self.faults = state.seen, state.faults
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.sent_s = math.inf  # when the last request had left as a whole

    async def _trace(self, event: str, _: dict) -> None:
        """httpx tells what it does."""
        if event == "http11.send_request_body.complete":
            self.sent_s = time.monotonic()

    def _asked(self, **body: Any) -> dict[str, Any]:
        """Arguments of a request that has not been sent yet."""
        self.sent_s = math.inf
        return {"extensions": {"trace": self._trace}, **body}

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
        while time.monotonic() < min(end_s, self.state.term_s + MARGIN_S):
            [way] = self.random.choices(ways, weights)
            try:
                await way()
            except httpx.HTTPError as error:
                if self.state.may_be_refused(self.sent_s):
                    self.seen["no longer taken"] += 1
                    return
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
        if text != self.state.expected[key]:
            self.faults.append(f"{key}: {text!r} instead of {self.state.expected[key]!r}")

    async def whole(self) -> None:
        """A whole reply, compared."""
        key = self._choice()
        response = await self.http.post(PATH, **self._asked(json=body(*key)))
        if self._note("whole", response.status_code):
            self._compare(key, response.json()["choices"][0]["message"]["content"])

    async def stream(self, pause_s: float = 0.0) -> None:
        """A streamed reply, compared; it must end with [DONE]."""
        key, text, last = self._choice(), "", ""
        asked = self._asked(json={**body(*key), "stream": True})
        async with self.http.stream("POST", PATH, **asked) as response:
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
        elif time.monotonic() > self.state.term_s:
            self.seen["streams that ended after SIGTERM"] += 1
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
        response = await self.http.post(PATH, **self._asked(json=asked))
        self._note("bad picture", response.status_code)
        if response.status_code == 200:
            self.faults.append("a bad picture was answered")

    async def oversized(self) -> None:
        """More than a server takes."""
        headers = {"Content-Type": "application/json"}
        asked = self._asked(content=b"x" * (21 * 2**20), headers=headers)
        self._note("oversized", (await self.http.post(PATH, **asked)).status_code)

    async def malformed(self) -> None:
        """JSON that is none."""
        data = json.dumps(body(*self._choice())).encode()[: self.random.randrange(200)]
        headers = {"Content-Type": "application/json"}
        response = await self.http.post(PATH, **self._asked(content=data, headers=headers))
        if response.status_code not in (400, 429, 503):
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


def http_client(url: str, num_clients: int) -> httpx.AsyncClient:
    """Connections enough for all."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_clients)
    return httpx.AsyncClient(base_url=url, timeout=300, limits=limits)


def start(http: httpx.AsyncClient, state: State, num_clients: int, end_s: float) -> list[asyncio.Task]:
    """All clients at once."""
    clients = [Client(http, state, seed) for seed in range(num_clients)]
    return [asyncio.create_task(client.run(end_s)) for client in clients]


async def left_behind(http: httpx.AsyncClient) -> tuple[float, str]:
    """Replies that are in the queue or in a slot ten seconds after the last client left, and the page of metrics."""
    for _ in range(100):
        page = (await http.get("/metrics")).text
        left = gauge(page, "fastvlm_slots_running") + gauge(page, "fastvlm_queue_waiting")
        if not left:
            break
        await asyncio.sleep(0.1)
    return left, page


async def soak(url: str, pid: int, seconds: float, num_clients: int, expected: dict) -> dict:
    """All clients for `seconds`; what they saw."""
    state, memory = State(expected), []
    start_s = time.monotonic()
    async with http_client(url, num_clients) as http:
        running = start(http, state, num_clients, start_s + seconds)
        while not all(task.done() for task in running):
            await asyncio.sleep(1)
            memory.append((time.monotonic() - start_s, memory_bytes(pid)))
        await asyncio.gather(*running)
        left, page = await left_behind(http)
    warm = max(size for when, size in memory if when <= seconds / 5)
    growth = max(size for _, size in memory) / warm - 1
    if growth > 0.05:
        state.faults.append(f"memory grew by {100 * growth:.1f} %")
    if left:
        state.faults.append(f"{left:g} replies are still in the queue or in a slot")
    return {
        "seconds": seconds,
        "tokens": gauge(page, 'fastvlm_tokens_total{kind="completion"}'),
        "memory_mb": [round(warm / 1e6), round(max(size for _, size in memory) / 1e6)],
        **told(state),
    }


async def soak_and_end(url: str, server: subprocess.Popen, seconds: float, num_clients: int, expected: dict) -> dict:
    """All clients; SIGTERM after `seconds`, while they go on; what they saw."""
    state = State(expected)
    async with http_client(url, num_clients) as http:
        running = start(http, state, num_clients, math.inf)
        await asyncio.sleep(seconds)
        state.term_s = time.monotonic()
        server.terminate()
        await asyncio.gather(*running)
    ended = await asyncio.to_thread(server.wait, ENDING_S)
    if ended:
        state.faults.append(f"exit code {ended}")
    if not state.seen["streams that ended after SIGTERM"]:
        state.faults.append("no streamed reply was under way at the signal: nothing was tried")
    return {"seconds": seconds, "ended_within_s": round(time.monotonic() - state.term_s, 1), **told(state)}


def told(state: State) -> dict:
    """The part of a result that both runs have."""
    return {
        "seen": dict(sorted(state.seen.items())),
        "faults": len(state.faults),
        "first_faults": state.faults[:10],
    }


@contextmanager
def serving() -> Iterator[tuple[str, subprocess.Popen]]:
    """A server that is ready: its URL and its process, which is told to end afterwards."""
    command = [sys.executable, "-m", "fastvlm", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own command
        url = server.stderr.readline().split(" at ")[1].split()[0]
        while httpx.get(f"{url}/ready").status_code != 200:
            time.sleep(0.5)
        log = Thread(target=server.stderr.read)  # a full pipe would hold the server up
        log.start()
        try:
            yield url, server
        finally:
            server.terminate()
            server.wait(ENDING_S)
            log.join()


def main() -> int:
    """Start, soak, stop, tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="of the first run; 0 for the second alone")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--term-after", type=float, help="seconds until SIGTERM in a second run")
    asked = parser.parse_args()
    expected = offline_replies()
    result, num_faults = {}, 0
    if asked.seconds:
        with serving() as (url, server):
            result = asyncio.run(soak(url, server.pid, asked.seconds, asked.clients, expected))
        result["exit_code"] = server.returncode
        num_faults += result["faults"] + abs(server.returncode)
    if asked.term_after is not None:
        with serving() as (url, server):
            result["with_sigterm"] = asyncio.run(soak_and_end(url, server, asked.term_after, asked.clients, expected))
        num_faults += result["with_sigterm"]["faults"]
    sys.stdout.write(json.dumps({"clients": asked.clients, **result}) + "\n")
    return int(num_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
