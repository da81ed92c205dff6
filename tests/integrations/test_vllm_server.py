"""`vllm serve` with FastVLM, asked by OpenAI's client: several processes, in the environment of `make vllm`."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from server_process import example, question
from vllm_process import CONVERSATIONS, MAX_TOKENS, Reference, environment, interpreter, marks

from fastvlm.formats.places import checkpoint_path

pytestmark = marks()
MINI = checkpoint_path("mini")
NO_IMAGE = "data:image/png;base64,bm8gaW1hZ2U="


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server; the test's limit of time is the only one."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    url = f"http://127.0.0.1:{port}"
    command = [interpreter().parent / "vllm", "serve", MINI, "--served-model-name", "mini", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--host", "127.0.0.1"]
    command += ["--limit-mm-per-prompt", '{"image": 4}', "--override-generation-config", '{"temperature": 0}']
    path = f"{interpreter().parent}:{os.environ['PATH']}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment(PATH=path), start_new_session=True
        )
    try:
        while not is_up(url):
            assert process.poll() is None, log.read_text()[-6000:]
            time.sleep(1)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none needed", timeout=None, max_retries=0) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):  # what is left of its processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def reference():
    return Reference(MINI)


@pytest.fixture(scope="module")
def expected(reference):
    return [reference(conversation)["text"] for conversation in CONVERSATIONS]


def ask(client, messages, **settings):
    return client.chat.completions.create(model="mini", messages=messages, max_tokens=MAX_TOKENS, **settings)


def text_of(client, messages) -> str:
    return ask(client, messages).choices[0].message.content


def test_eight_clients_at_once(client, expected):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda messages: text_of(client, messages), CONVERSATIONS)) == expected


def test_a_stream(client, expected):
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, CONVERSATIONS[0], stream=True)]
    assert "".join(pieces) == expected[0] and len(pieces) > 3


def test_two_images(client, reference):
    messages = [question("What do you see?", example("letter"), example("shapes"))]
    assert text_of(client, messages) == reference(messages)["text"]


@pytest.mark.parametrize(
    ("messages", "settings", "words"),
    [
        ([question("?", *[example("word")] * 5)], {}, "At most 4 image"),
        ([question("?", NO_IMAGE)], {}, "image"),
        ([question("?", example("word"))], {"extra_body": {"mm_processor_kwargs": {"image_size": 256}}}, "mm_proc"),
    ],
)
def test_refused_requests(client, expected, messages, settings, words):
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, messages, **settings)
    assert text_of(client, CONVERSATIONS[0]) == expected[0]
