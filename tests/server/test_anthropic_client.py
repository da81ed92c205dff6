"""Anthropic's own Python client: what it parses is what it expects."""

import anthropic
import pytest
from server_process import example

from fastvlm import SamplingParams
from fastvlm.engine.prompt_inputs import ChatPrompt


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none needed", max_retries=0) as client:
        yield client


LETTER = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": example("letter").partition(",")[2]},
}
MESSAGES = [{"role": "user", "content": [LETTER, {"type": "text", "text": "What letter is this?"}]}]


def test_a_whole_reply(client):
    reply = client.messages.create(model="mini", max_tokens=16, messages=MESSAGES, system="Be short.")
    [content] = reply.content
    assert content.text == "K" and reply.role == "assistant" and reply.stop_reason == "end_turn"
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens > 64 and reply.usage.output_tokens == 2


def test_a_streamed_reply_is_the_same(client):
    whole = client.messages.create(model="mini", max_tokens=16, messages=MESSAGES)
    with client.messages.stream(model="mini", max_tokens=16, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens


def test_why_a_reply_ends(client):
    ask = [{"role": "user", "content": "What can you do?"}]
    cut = client.messages.create(model="mini", max_tokens=1, messages=ask)
    assert cut.stop_reason == "max_tokens" and cut.stop_sequence is None
    whole = client.messages.create(model="mini", max_tokens=32, messages=ask).content[0].text
    word = whole.split()[1]
    stopped = client.messages.create(model="mini", max_tokens=32, messages=ask, stop_sequences=[word])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == word
    assert stopped.content[0].text == whole.partition(word)[0].rstrip()


def test_the_reply_continues_a_final_message_of_the_assistant(client, offline):
    messages = [*MESSAGES, {"role": "assistant", "content": "The letter is"}]
    reply = client.messages.create(model="mini", max_tokens=4, messages=messages)
    question = [{"type": "image", "url": example("letter")}, {"type": "text", "text": "What letter is this?"}]
    prompt = ChatPrompt([{"role": "user", "content": question}, messages[-1]], False, True)
    expected = offline.generate(prompt, SamplingParams(max_new_tokens=4, keep_whitespace=True))
    assert reply.content[0].text == expected.text
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens == expected.usage.prompt_tokens


def test_errors_are_anthropics(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="other", max_tokens=1, messages=MESSAGES)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="not trained to call tools"):
        client.messages.create(
            model="mini", max_tokens=1, messages=MESSAGES, tools=[{"name": "a", "input_schema": {"type": "object"}}]
        )
    broken = {**LETTER, "source": {**LETTER["source"], "data": "bm8gaW1hZ2U="}}
    with pytest.raises(anthropic.BadRequestError, match="not an image that can be opened"):
        client.messages.create(model="mini", max_tokens=1, messages=[{"role": "user", "content": [broken]}])
