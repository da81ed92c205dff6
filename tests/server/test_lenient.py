"""--lenient: unknown parameters are left out, wherever they stand, and named once."""

import httpx
import pytest
from server_process import Server, example, question


@pytest.fixture(scope="module")
def lenient():
    running = Server("--lenient", "--max-output-tokens", 16)
    yield running
    assert running.stop() == 0


def test_unknown_parameters_are_left_out_and_named_once(lenient):
    message = question("What letter is this?", example("letter"))
    message["cache"] = "yes"
    message["content"][0]["image_url"]["alt"] = "a letter"
    for _ in range(2):
        reply = lenient.chat(message, some_parameter={"a": [1]}, frequency_penalty=0)
        assert reply.json()["choices"][0]["message"]["content"] == "K"
    lines = [line for line in lenient.lines if "is unknown and ignored" in line]
    assert sorted(line.split("'")[1] for line in lines) == ["alt", "cache", "some_parameter"]


def test_wrong_values_of_known_ones_are_refused_as_ever(lenient):
    reply = lenient.chat(question("a"), frequency_penalty=1, unknown=1)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "frequency_penalty"
    reply = httpx.post(f"{lenient.url}/api/chat", json={"model": "mini", "messages": [{"role": "tool"}], "unknown": 1})
    assert reply.status_code == 400 and "messages[0].role" in reply.json()["error"]
