"""A model whose numbers are not finite for some tokens: an error of the server, whole or in the stream."""

import json

import parrot
import pytest
import torch
from server_process import Server, question

from fastvlm import FastVlmImageProcessor, FastVlmProcessor

BAD_LETTER = "~"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The parrot with NaN in the embeddings of a letter, and of the tenth token of its sentence."""
    folder = tmp_path_factory.mktemp("checkpoints") / "damaged"
    words = parrot.tokenizer()
    model = parrot.model(words)
    tenth = parrot.pieces(parrot.SENTENCE)[9]
    with torch.no_grad():
        model.get_input_embeddings().weight[words.convert_tokens_to_ids([BAD_LETTER, tenth])] = float("nan")
    model.save_pretrained(folder)
    FastVlmProcessor(FastVlmImageProcessor(image_size=parrot.SIZE_PX), words).save_pretrained(folder)
    with Server("--name", "mini", "--slots", 2, model=folder) as running:
        yield running


def check(error):
    assert error["code"] == "non_finite" and error["type"] == "server_error" and "NaN or infinity" in error["message"]


@pytest.mark.parametrize("settings", [{}, {"logprobs": True, "top_logprobs": 3}, {"temperature": 1.0}, {"n": 2}])
def test_the_reply_is_one_clear_error(damaged, settings):
    for asked, tokens in ((question(BAD_LETTER), 1), (question("?"), 20)):
        response = damaged.chat(asked, max_tokens=tokens, **settings)
        assert response.status_code == 500 and int(response.headers["content-length"]) == len(response.content)
        check(response.json()["error"])
    assert damaged.chat(question("?"), max_tokens=5, **settings).status_code == 200  # others, in the same slots
    assert "contain NaN or infinity" in "".join(damaged.lines)


@pytest.mark.parametrize("settings", [{}, {"logprobs": True}])
def test_a_stream_ends_with_the_error(damaged, settings):
    response = damaged.chat(question("?"), max_tokens=20, stream=True, **settings)
    assert response.status_code == 200
    *events, last = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert events and all("choices" in event for event in events)
    check(last["error"])
    assert damaged.chat(question(BAD_LETTER), stream=True).status_code == 500  # nothing has been sent yet
