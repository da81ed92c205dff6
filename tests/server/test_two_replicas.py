"""`fastvlm serve --replicas 2`: two engines of one process, both at work, on weights that are held once."""

import re
import threading

import pytest
from server_process import ROOT, Server, example, question

from fastvlm.engine.types import SamplingParams

IMAGES = ("letter", "shapes", "red_star", "word", "objects", "letters", "five_shapes", "cat_photo")
TEXT = "What is this?"


@pytest.fixture(scope="module")
def two():
    with Server("--replicas", 2, "--slots", 2, "--prompt-lookup", 8) as running:
        yield running


def images_encoded(server) -> dict[str, float]:
    """Images that each replica has encoded."""
    page = server.client.get("/metrics").text
    samples = re.findall(r'fastvlm_images_total\{cache="miss",model="mini",replica="(\d)"\} (\S+)', page)
    return {replica: float(count) for replica, count in samples}


def test_both_answer_as_the_offline_engine_does(two, offline):
    before = images_encoded(two)
    assert before == {"0": 1.0, "1": 1.0}  # each has answered one question before it was ready
    replies, together = {}, threading.Barrier(len(IMAGES))

    def ask(name):
        together.wait()
        reply = two.chat(question(TEXT, example(name)), max_tokens=16)
        replies[name] = reply.json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(name,)) for name in IMAGES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    two.until_idle()
    after = images_encoded(two)
    assert all(after[replica] > before[replica] for replica in ("0", "1"))
    assert sum(after.values()) == sum(before.values()) + len(IMAGES)
    for name in IMAGES:
        content = [{"type": "image", "path": str(ROOT / "examples" / f"{name}.png")}, {"type": "text", "text": TEXT}]
        expected = offline.generate([{"role": "user", "content": content}], SamplingParams(max_new_tokens=16))
        assert replies[name] == expected.text, name


def test_the_second_question_about_an_image_goes_where_the_image_is_known(two):
    asked = question(TEXT, example("animal"))
    two.chat(asked, max_tokens=4)
    before = images_encoded(two)
    again = two.chat(asked, max_tokens=4).json()
    assert images_encoded(two) == before
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
