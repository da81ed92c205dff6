"""OpenAI's own Python client: what it parses is what it expects."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field
from server_process import example, question


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


MESSAGES = [question("What letter is this?", example("letter"))]


def test_whole_and_streamed_replies_are_the_same(client):
    whole = client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=16)
    stream = client.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"


def test_a_stream_without_usage_has_none(client):
    chunks = list(client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=4, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_streamed_choices_are_those_of_the_whole_reply(client):
    settings = {"model": "mini", "messages": MESSAGES, "max_tokens": 8, "n": 3, "temperature": 1.0, "seed": 1}
    whole = client.chat.completions.create(**settings)
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in client.chat.completions.create(**settings, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [] if choice.finish_reason is None else [choice.index]
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert sorted(ends) == [0, 1, 2]


def test_streamed_log_probabilities_are_those_of_the_whole_reply(client):
    settings = {"model": "mini", "messages": MESSAGES, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings).choices[0].logprobs.content
    streamed = []
    for chunk in client.chat.completions.create(**settings, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in whole], abs=1e-4)


class Shape(BaseModel):
    color: Literal["red", "dark blue"]
    sides: int = Field(ge=0, le=99)


def test_a_parsed_reply_is_of_the_asked_class(client):
    asked = {"type": "object", "properties": {"sides": {"type": "integer", "maximum": 9}}, "required": ["sides"]}
    reply = client.chat.completions.create(
        model="mini",
        messages=MESSAGES,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "shape", "schema": {**asked}}},
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    assert text.startswith('{"sides":')
    parsed = client.chat.completions.parse(
        model="mini", messages=MESSAGES, max_tokens=60, response_format=Shape, temperature=1.5, seed=8
    )
    assert isinstance(parsed.choices[0].message.parsed, Shape)


def test_a_reply_may_come_back_as_the_client_dumps_it(client):
    reply = client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=8).choices[0].message
    messages = [*MESSAGES, reply.model_dump(), {"role": "user", "content": "Sure?"}]
    assert client.chat.completions.create(model="mini", messages=messages, max_tokens=4).usage.prompt_tokens > 20


def test_completions_and_models(client):
    whole = client.completions.create(model="mini", prompt="The", max_tokens=6, logprobs=1)
    pieces = client.completions.create(model="mini", prompt="The", max_tokens=6, stream=True, logprobs=1)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "fastvlm"


def test_mistakes_are_the_clients_own_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="mini", messages=MESSAGES, temperature=9, stream=True)
    assert raised.value.param == "temperature" and raised.value.code == "invalid_value"
    assert json.dumps(raised.value.body)


def test_two_at_once_are_answered_as_one_after_the_other(server):
    import asyncio

    async def both():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            asked = [
                client.chat.completions.create(
                    model="mini", messages=[question("What is this?", example(name))], max_tokens=16
                )
                for name in ("letter", "shapes", "red_star", "word", "objects", "letters")
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    together = asyncio.run(both())
    alone = [
        server.chat(question("What is this?", example(name)), max_tokens=16).json()["choices"][0]["message"]["content"]
        for name in ("letter", "shapes", "red_star", "word", "objects", "letters")
    ]
    assert together == alone


def test_vllms_parameters(client):
    settings = {"model": "mini", "messages": MESSAGES, "max_tokens": 8}
    [whole] = client.chat.completions.create(**settings, logprobs=True).choices
    schema = {"type": "object", "properties": {"letter": {"enum": ["K"]}}, "required": ["letter"]}
    for extra in ({"guided_json": schema}, {"structured_outputs": {"json": schema}}):
        reply = client.chat.completions.create(**{**settings, "max_tokens": 32}, extra_body=extra)
        assert json.loads(reply.choices[0].message.content) == {"letter": "K"}
    endless = client.chat.completions.create(**settings, extra_body={"ignore_eos": True})
    assert endless.usage.completion_tokens == 8 and endless.choices[0].finish_reason == "length"
    ids = list(range(200))[:64]
    ended = client.chat.completions.create(**settings, extra_body={"stop_token_ids": ids})
    assert ended.usage.completion_tokens <= 8 and whole.finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="Give one of"):
        client.chat.completions.create(
            **settings, extra_body={"guided_json": schema, "structured_outputs": {"json": {}}}
        )


def test_a_final_message_of_the_assistant_is_continued(client):
    messages = [*MESSAGES, {"role": "assistant", "content": "The letter is"}]
    settings = {"model": "mini", "messages": messages, "max_tokens": 3}
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(**settings, extra_body=extra)
    plain = client.chat.completions.create(**{**settings, "messages": MESSAGES})
    assert reply.usage.prompt_tokens > plain.usage.prompt_tokens
    for wrong, says in (
        ({}, "continue_final_message"),
        ({**extra, "add_generation_prompt": True}, "needs add_generation_prompt to be false"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            client.chat.completions.create(**settings, extra_body=wrong)
    with pytest.raises(openai.BadRequestError, match="an assistant's message at the end"):
        client.chat.completions.create(**{**settings, "messages": MESSAGES}, extra_body=extra)


@pytest.mark.parametrize(
    "extra",
    [{"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tool_choice": "required"}],
)
def test_tools_are_refused_readably(client, extra):
    with pytest.raises(openai.BadRequestError, match=r"not trained to call tools.*JSON schema"):
        client.chat.completions.create(model="mini", messages=MESSAGES, extra_body=extra)
