"""Requests that are valid JSON and a lot of work: others are answered meanwhile, and memory is bounded."""

import asyncio
import json
import threading
from pathlib import Path

import httpx
import parrot
import pytest
from server_process import question

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.engine.engine import Engine
from fastvlm.server.app import create_app
from fastvlm.server.openai import completions, formatters, messages
from fastvlm.server.service import Service
from fastvlm.server.settings import ServeSettings

PART = '{"type":"text","text":"a"}'
CHAT = '{"model":"mini","messages":[{"role":"user","content":%s}]%s}'
HEAVY = {
    "text": (CHAT % ('"' + "a" * 6_000_000 + '"', ""), "context_length_exceeded"),
    "texts": (
        CHAT % ("[" + ",".join(['{"type":"text","text":"' + "é" * 6000 + '"}'] * 1000) + "]", ""),
        "context_length_exceeded",
    ),
    "parts": (CHAT % ("[" + ",".join([PART] * 300_000) + "]", ""), "body_too_complex"),
    "keys": (CHAT % ('"a"', "".join(f',"k{index}":1' for index in range(500_000))), "body_too_complex"),
    "few keys": (CHAT % ('"a"', "".join(f',"k{index}":1' for index in range(30_000))), "unknown_parameter"),
    "arrays": (CHAT % ("[" + "[]," * 6_000_000 + "1]", ""), "body_too_complex"),
    "long key": (CHAT % ('"a"', ',"' + "k" * 18_000_000 + '":1'), "unknown_parameter"),
    "escapes": (
        CHAT % ('[{"type":"image_url","image_url":"data:image/png;base64,' + "%41" * 6_000_000 + '"}]', ""),
        "invalid_image",
    ),
}
MEMORY_BYTES = 600 * 2**20


def peak_bytes(server) -> int:
    """The most memory that the server's process ever had."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("kind", HEAVY)
def test_a_heavy_request_is_refused_with_little_memory(strict, kind):
    body, code = HEAVY[kind]
    before = peak_bytes(strict)
    headers = {"Content-Type": "application/json"}
    response = strict.client.post("/v1/chat/completions", content=body.encode(), headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == code and len(response.text) < 2000
    assert peak_bytes(strict) - before < MEMORY_BYTES


def test_a_long_text_to_complete_is_refused_before_it_is_tokenized(strict):
    for prompt in ("a" * 6_000_000, ["a", " \n" * 3_000_000]):
        response = strict.client.post("/v1/completions", json={"model": "mini", "prompt": prompt})
        assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def test_others_are_answered_while_a_long_reply_is_made(strict):
    """1,000 tokens take longer than asking for the health; if the loop stood still, it would be the other way round."""
    order = []

    def ask():
        order.append(strict.chat(question("?"), max_tokens=500, n=2, logprobs=True, top_logprobs=20).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    while strict.metric("fastvlm_slots_running") == 0 and not order:
        pass
    order.append(strict.client.get("/health").json()["status"])
    thread.join()
    assert order == ["ready", 200]


# ------------------------------------------------------------------------------------------ which thread does what


def open_engines():
    words = parrot.tokenizer()
    processor = FastVlmProcessor(FastVlmImageProcessor(image_size=parrot.SIZE_PX), words)
    return {"mini": [Engine(parrot.model(words), processor, num_slots=1)]}


async def asked_meanwhile(held: threading.Event, release: threading.Event, path: str, body: dict) -> tuple[int, int]:
    """(status of /health while the request is held, the request's own status)."""
    service = Service(ServeSettings(), open_engines)
    app = create_app(service)
    await service.start(lambda: None)
    assert service.failure is None
    held.clear()  # the warm-up has passed here too
    release.clear()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        asked = asyncio.create_task(client.post(path, json=body))
        assert await asyncio.to_thread(held.wait, 120)
        health = await client.get("/health")
        assert not asked.done()
        release.set()
        status = (await asked).status_code
    await service.close()
    return health.status_code, status


CHATS = {"model": "mini", "messages": [question("?")], "max_tokens": 2}
TEXTS = {"model": "mini", "prompt": "A", "max_tokens": 2}
IMAGES = {**CHATS, "messages": [question("?", "data:image/x-portable-graymap;base64,UDUgMSAxIDI1NQoA")]}


@pytest.mark.parametrize(
    ("place", "name", "path", "body"),
    [
        (completions, "parse", "/v1/chat/completions", CHATS),
        (completions, "check_texts", "/v1/chat/completions", CHATS),
        (completions, "_digest", "/v1/completions", TEXTS),
        (completions, "_token_ids", "/v1/completions", TEXTS),
        (messages, "read_data_uri", "/v1/chat/completions", IMAGES),
        (Engine, "prepare", "/v1/chat/completions", IMAGES),
        (formatters.ChatFormatter, "response", "/v1/chat/completions", CHATS),
        (formatters.CompletionFormatter, "response", "/v1/completions", TEXTS),
    ],
)
def test_the_event_loop_is_free_while_one_request_is_worked_on(monkeypatch, place, name, path, body):
    held, release = threading.Event(), threading.Event()
    release.set()
    original = getattr(place, name)

    def slow(*arguments, **settings):
        held.set()
        assert release.wait(120), "the event loop stood still"
        return original(*arguments, **settings)

    monkeypatch.setattr(place, name, slow)
    assert asyncio.run(asked_meanwhile(held, release, path, body)) == (200, 200)


def test_a_request_forgets_its_images_once_they_are_prepared(monkeypatch):
    """What waits for a slot holds the prepared prompt, not the body."""
    seen = []
    original = completions._respond

    async def respond(context, request, *rest):
        seen.append(list(request.messages))
        await original(context, request, *rest)

    monkeypatch.setattr(completions, "_respond", respond)

    async def run():
        service = Service(ServeSettings(), open_engines)
        app = create_app(service)
        await service.start(lambda: None)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            response = await client.post("/v1/chat/completions", json=json.loads(json.dumps(IMAGES)))
        await service.close()
        return response.status_code

    assert asyncio.run(run()) == 200 and seen == [[]]
