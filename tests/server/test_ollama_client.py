"""Ollama's own Python client, and what its users send: what it parses is what it expects."""

import base64
import json

import httpx
import ollama
import pytest
from server_process import example

from fastvlm import __version__


@pytest.fixture(scope="module")
def client(server):
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


@pytest.fixture(scope="module")
def letter():
    return base64.b64decode(example("letter").partition(",")[2])


OPTIONS = {"num_predict": 16, "temperature": 0}


def chat(client, letter, **settings):
    message = {"role": "user", "content": "What letter is this?", "images": [letter]}
    return client.chat(model="mini", messages=[message], options=OPTIONS, **settings)


def test_whole_and_streamed_chats_are_the_same(client, letter):
    whole = chat(client, letter)
    assert whole.message.role == "assistant" and whole.message.content == "K"
    assert whole.done and whole.done_reason == "stop" and whole.total_duration > whole.eval_duration > 0
    *pieces, last = chat(client, letter, stream=True)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert not any(piece.done for piece in pieces) and last.done and last.message.content == ""
    assert last.eval_count == whole.eval_count and last.prompt_eval_count == whole.prompt_eval_count


def test_one_question(client, letter):
    whole = client.generate(model="mini:latest", prompt="What letter is this?", images=[letter], options=OPTIONS)
    assert whole.response == "K" and whole.model == "mini:latest"
    pieces = client.generate(
        model="mini", prompt="What letter is this?", system="Be short.", images=[letter], options=OPTIONS, stream=True
    )
    assert list(pieces)[-1].done


def test_a_reply_of_a_schema(client, letter):
    schema = {"type": "object", "properties": {"letter": {"enum": ["K", "B"]}}, "required": ["letter"]}
    assert json.loads(chat(client, letter, format=schema).message.content) == {"letter": "K"}


def test_a_cut_reply_says_so(client, letter):
    reply = client.generate(model="mini", prompt="What can you do?", options={"num_predict": 1})
    assert reply.done_reason == "length" and reply.eval_count == 1


def test_without_a_question_the_model_is_loaded(client):
    assert client.generate(model="mini").done_reason == "load"
    assert client.chat(model="mini", messages=[]).done_reason == "load"
    [last] = client.chat(model="mini", messages=[], stream=True)
    assert last.done_reason == "load"


def test_what_the_models_are(client, server):
    [tag] = client.list().models
    assert tag.model == "mini:latest" and tag.size > 10**6 and len(tag.digest) == 64
    assert tag.details.family == "fastvlm" and tag.details.quantization_level
    [open_one] = client.ps().models
    assert open_one.context_length > 1000
    shown = client.show("mini")
    assert "vision" in shown.capabilities and shown.modelinfo["fastvlm.image.tokens"] == 64
    assert httpx.get(f"{server.url}/api/version").json() == {"version": __version__}


def test_errors_are_ollamas(client, server):
    with pytest.raises(ollama.ResponseError, match="this server has 'mini'") as caught:
        client.generate(model="other", prompt="a")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="this server has 'mini'"):
        client.show("other")
    with pytest.raises(ollama.ResponseError, match="not an image that can be opened"):
        client.generate(model="mini", prompt="a", images=[base64.b64encode(b"no image").decode()])
    with pytest.raises(ollama.ResponseError, match="not trained to call tools"):
        client.chat(model="mini", messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}])
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat is not a known parameter"):
        client.generate(model="mini", prompt="a", options={"mirostat": 1})
    with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
        client.pull("mini")
    assert caught.value.status_code == 404
    reply = httpx.post(f"{server.url}/api/show", content=b"{", headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and "not valid JSON" in reply.json()["error"]
    reply = httpx.post(f"{server.url}/api/show", json={"model": "a" * 2**17})
    assert reply.status_code == 413
