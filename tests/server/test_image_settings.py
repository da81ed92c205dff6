"""`mm_processor_kwargs` of a chat: size and fit of one request's images."""

import pytest
from server_process import ROOT, example, question

import fastvlm
from fastvlm.engine.types import SamplingParams

TEXT = "What letter is this?"


def ask(server, **images):
    return server.chat(question(TEXT, example("letter")), max_tokens=8, mm_processor_kwargs=images)


@pytest.mark.parametrize(("images", "tokens"), [({"image_size": 384}, 36), ({"image_size": [256, 512]}, 32)])
def test_an_answer_equals_that_of_an_engine_of_this_size(server, images, tokens):
    checkpoint = fastvlm.open_checkpoint("mini")
    checkpoint.processor.image_processor.choose(**images, image_fit="crop")
    engine = fastvlm.Engine.from_checkpoint(checkpoint)
    image = {"type": "image", "path": str(ROOT / "examples" / "letter.png")}
    message = {"role": "user", "content": [image, {"type": "text", "text": TEXT}]}
    expected = engine.generate([message], SamplingParams(max_new_tokens=8))
    reply = ask(server, **images, image_fit="crop").json()
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens == tokens
    own = server.chat(question(TEXT, example("letter")), max_tokens=8).json()
    assert own["usage"]["prompt_tokens_details"]["image_tokens"] == 64, "later requests have the server's own size"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"image_size": 1024}, "this server takes up to 512x512 pixels"),
        ({"image_size": 100}, "must be a multiple of 64"),
        ({"image_size": -64}, "image_size"),
        ({"image_size": 2**40}, "at most"),
        ({"image_fit": "bend"}, "image_fit"),
        ({"num_crops": 4}, "num_crops"),
    ],
)
def test_a_size_or_fit_that_cannot_be_is_refused(server, images, words):
    reply = ask(server, **images)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"].startswith("mm_processor_kwargs")
    assert words in error["message"] or words in error["param"]
