"""/v1/responses by OpenAI's own Python client."""

import json

import openai
import pytest
from server_process import example


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


INPUT = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": example("letter"), "detail": "auto"},
            {"type": "input_text", "text": "What letter is this?"},
        ],
    }
]


def test_a_whole_reply(client):
    reply = client.responses.create(model="mini", input=INPUT, instructions="Be short.", metadata={"a": "b"})
    assert reply.output_text == "K" and reply.status == "completed" and reply.metadata == {"a": "b"}
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    again = client.responses.create(
        model="mini", input=[*INPUT, reply.output[0].model_dump(), {"role": "user", "content": "Are you sure?"}]
    )
    assert again.status == "completed"


def test_a_streamed_reply_is_the_same(client):
    events = list(client.responses.create(model="mini", input=INPUT, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "K"
    with client.responses.stream(model="mini", input=INPUT) as stream:
        assert stream.get_final_response().output_text == "K"


def test_a_cut_reply_is_incomplete(client):
    reply = client.responses.create(model="mini", input="What can you do?", max_output_tokens=1)
    assert reply.status == "incomplete" and reply.incomplete_details.reason == "max_output_tokens"


def test_a_reply_of_a_schema(client):
    schema = {"type": "object", "properties": {"letter": {"enum": ["K", "B"]}}, "required": ["letter"]}
    form = {"type": "json_schema", "name": "letter", "schema": schema}
    reply = client.responses.create(model="mini", input=INPUT, text={"format": form})
    assert json.loads(reply.output_text) == {"letter": "K"} and reply.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "not trained to call tools"),
        ({"input": [{"role": "assistant", "content": "a"}]}, "End with a user message"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]}, r"input\[0\]"),
    ],
)
def test_what_cannot_be_done_is_refused(client, settings, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.responses.create(**{"model": "mini", "input": "a", **settings})
