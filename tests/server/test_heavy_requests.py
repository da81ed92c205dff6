"""Requests that are valid JSON and a lot of work: others are answered meanwhile, and memory is bounded."""

import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import engines
import httpx
import parrot
import pytest
from server_process import question

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.engine.engine import Engine
from fastvlm.server import conversation, generation
from fastvlm.server.app import create_app
from fastvlm.server.openai import chat, completions
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
    return {"mini": [engines.engine(parrot.model(words), processor, num_slots=1)]}


@asynccontextmanager
async def application():
    """A client of the application in this process."""
    service = Service(ServeSettings(image_workers=1), open_engines)
    transport = httpx.ASGITransport(app=create_app(service))
    await service.start()
    assert service.failure is None
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client
    await service.close()


CHATS = {"model": "mini", "messages": [question("?")], "max_tokens": 2}
TEXTS = {"model": "mini", "prompt": "A", "max_tokens": 2}
IMAGES = {**CHATS, "messages": [question("?", "data:image/x-portable-graymap;base64,UDUgMSAxIDI1NQoA")]}
BLOCKED = [
    (chat, "parse", "/v1/chat/completions", CHATS),
    (chat, "conversation", "/v1/chat/completions", CHATS),
    (completions, "parse", "/v1/completions", TEXTS),
    (generation, "_token_ids", "/v1/completions", TEXTS),
    (conversation, "read_data_uri", "/v1/chat/completions", IMAGES),
    (Engine, "prepare", "/v1/chat/completions", IMAGES),
    (chat.ChatFormatter, "reply", "/v1/chat/completions", CHATS),
    (completions.CompletionFormatter, "reply", "/v1/completions", TEXTS),
]


def blocking(function, held, release):
    """`function`, which waits for `release` before it begins."""

    def wrapper(*arguments):
        held.set()
        assert release.wait(120), "the event loop stood still"
        return function(*arguments)

    return wrapper


def test_the_event_loop_is_free_while_one_request_is_worked_on(monkeypatch):
    async def run():
        async with application() as client:
            for place, name, path, body in BLOCKED:
                held, release = threading.Event(), threading.Event()
                with monkeypatch.context() as patch:
                    patch.setattr(place, name, blocking(getattr(place, name), held, release))
                    asked = asyncio.create_task(client.post(path, json=body))
                    assert await asyncio.to_thread(held.wait, 120), name
                    health = await client.get("/health")
                    assert health.status_code == 200 and not asked.done(), name
                    release.set()
                    assert (await asked).status_code == 200, name

    asyncio.run(run())


def test_a_request_forgets_its_images_once_they_are_prepared(monkeypatch):
    """A request that waits for a slot holds the prepared prompt, not the body."""
    seen = []
    original = generation._respond

    async def respond(context, request, *rest):
        seen.append(list(request.prompts))
        await original(context, request, *rest)

    monkeypatch.setattr(generation, "_respond", respond)

    async def run():
        async with application() as client:
            return (await client.post("/v1/chat/completions", json=IMAGES)).status_code

    assert asyncio.run(run()) == 200 and seen == [[]]
