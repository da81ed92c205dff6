"""`FastVLM` as a script, threads and coroutines use it, over the shipped checkpoint."""

import asyncio
import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import fastvlm
from fastvlm import AsyncFastVLM, FastVLM
from fastvlm.errors import FastVlmError, ImageError, SchemaError, UsageError

STAR, SHAPES = "examples/red_star.png", "examples/five_shapes.png"
WHAT = "What shape is this?"


@pytest.fixture(scope="module")
def model():
    with FastVLM("mini", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def answer(model):
    return model.ask(STAR, WHAT)


def test_a_question_gets_the_answer_of_generate(answer):
    model, processor = fastvlm.load("mini", device="cpu", dtype="float32")
    content = [{"type": "image", "path": STAR}, {"type": "text", "text": WHAT}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == processor.decode(ids, skip_special_tokens=True).strip() == "It is a star."


def test_every_kind_of_source(model, answer):
    with Image.open(STAR) as image:
        sources = [STAR, Path(STAR).read_bytes(), image.convert("RGB"), [STAR]]
        assert [model.ask(source, WHAT) for source in sources] == [answer] * 4


def test_several_images_and_none(model):
    assert model.ask([STAR, SHAPES], "Compare.", max_new_tokens=4)
    assert model.ask(None, "Hello?", max_new_tokens=4)


def test_a_stream_is_the_answer_in_pieces(model, answer):
    pieces = list(model.stream(STAR, WHAT))
    assert "".join(pieces) == answer and len(pieces) > 1


def test_a_stream_that_is_left_frees_its_slot(model, answer):
    for _ in range(model.engine.num_slots + 1):
        stream = model.stream(STAR, WHAT)
        next(stream)
        stream.close()
    assert model.ask(STAR, WHAT) == answer


@pytest.fixture
def steps(model, monkeypatch):
    """The thread of each step of the engine."""
    threads, step = [], model.engine.step

    def noted():
        threads.append(threading.current_thread())
        return step()

    monkeypatch.setattr(model.engine, "step", noted)
    return threads


def test_one_thread_alone_steps_the_engine_itself(model, answer, steps):
    before = threading.active_count()
    assert model.ask(STAR, WHAT) == answer == "".join(model.stream(STAR, WHAT))
    assert set(steps) == {threading.current_thread()} and threading.active_count() == before


def test_a_token_comes_before_the_next_is_computed(model, monkeypatch):
    steps, decode = [], model.engine.backend.decode
    monkeypatch.setattr(model.engine.backend, "decode", lambda *rows: steps.append(rows) or decode(*rows))
    events = model.events([{"role": "user", "content": "Hello?"}], ignore_eos=True, max_new_tokens=8)
    for number in range(3):
        next(events)
        assert len(steps) == number
    events.close()
    assert len(steps) == 2 and model.engine.num_running == 0


def test_ctrl_c_ends_the_request_between_two_steps(model, answer, monkeypatch):
    decode, finished = model.engine.backend.decode, []

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        finished.append(decode(*arguments))
        return finished[-1]

    with monkeypatch.context() as patch:
        patch.setattr(model.engine.backend, "decode", interrupted)
        for ask in (lambda: model.ask(STAR, WHAT), lambda: list(model.stream(STAR, WHAT))):
            with pytest.raises(KeyboardInterrupt):
                ask()
    assert len(finished) == 2 and model.engine.num_running == 0
    assert model.ask(STAR, WHAT) == answer


def test_ctrl_c_during_a_prefill_waits_for_one_step_of_the_encoder(model, answer, monkeypatch):
    encode, num_slices = model.engine.backend.encode, []

    def interrupted(pixel_values):
        work = encode(pixel_values)
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            num_slices.append(1)
            try:
                next(work)
            except StopIteration as end:
                return end.value
            yield

    model.forget()
    with monkeypatch.context() as patch:
        patch.setattr(model.engine.backend, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.ask(STAR, WHAT)
    assert len(num_slices) == 1 and model.engine.num_running == 0
    assert model.ask(STAR, WHAT) == answer


def test_a_question_inside_an_event_loop_as_in_a_notebook(model, answer):
    async def cell():
        return model.ask(STAR, WHAT)

    assert asyncio.run(cell()) == answer


def test_a_batch_comes_in_its_order_and_runs_together(model, answer, monkeypatch):
    most, decode = [], model.engine.backend.decode

    def counted(token_ids, slots, positions):
        most.append(len(slots))
        return decode(token_ids, slots, positions)

    monkeypatch.setattr(model.engine.backend, "decode", counted)
    monkeypatch.setattr(model.engine._scheduler, "_admission_ratio", math.inf)  # steps that do not depend on time
    answers = model.batch([(STAR, WHAT), (SHAPES, "What do you see?"), (STAR, WHAT), (None, "Hello?"), (STAR, WHAT)])
    assert answers[0] == answers[2] == answers[4] == answer and answers[1] != answer
    assert max(most) == model.engine.num_slots


def test_a_batch_with_a_broken_image_says_so_and_leaves_nothing(model, answer, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match="broken"):
        model.batch([(STAR, WHAT), (str(broken), WHAT), (STAR, WHAT)])
    assert model.ask(STAR, WHAT) == answer


def test_threads_may_ask_at_the_same_time(model, answer):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: model.ask(STAR, WHAT), range(12)))
    assert answers == [answer] * 12


def test_a_chat_keeps_images_and_what_was_computed(model):
    chat = model.chat()
    first = chat.ask(WHAT, STAR)
    hits = model.engine.image_hits
    second = chat.ask("What color is it?")
    assert "red" in second.lower()
    assert model.engine.image_hits[1] == hits[1], "the image was encoded again"
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[1]["content"][0]["text"] == first
    assert "".join(chat.stream("What shape is it?")) == chat.messages[-1]["content"][0]["text"]


def test_sampling_and_system_prompt(model, answer):
    settings = {"temperature": 1.5, "seed": 4, "max_new_tokens": 8}
    assert model.ask(STAR, WHAT, **settings) == model.ask(STAR, WHAT, **settings)
    assert model.ask(STAR, WHAT, system="Answer in French.", max_new_tokens=3) is not None
    assert len(model.ask(STAR, WHAT, max_new_tokens=1)) < len(answer)


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "maximum": 9}},
    "required": ["shape", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("wanted", [SCHEMA, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}])
def test_a_schema_is_followed(model, wanted):
    found = json.loads(model.ask(STAR, "Describe it as JSON.", response_format=wanted))
    assert set(found) == {"shape", "count"} and isinstance(found["count"], int)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"response_format": {"type": "nothing"}}, SchemaError, "cannot be enforced"),
        ({"response_format": "json"}, UsageError, "expected a JSON schema"),
        ({"response_format": {"type": "json_schema"}}, UsageError, "json_schema.schema"),
        ({"temprature": 1}, UsageError, "no option 'temprature'"),
        ({"temperature": -1}, UsageError, "temperature is -1"),
    ],
)
def test_wrong_options_are_named(model, options, error, words):
    with pytest.raises(error, match=words):
        model.ask(STAR, WHAT, **options)


def test_a_forgotten_image_is_noticed(model):
    with pytest.raises(TypeError):
        model.ask("What is this?")
    with pytest.raises(UsageError, match=r"ask\(images, question\)"):
        model.ask("What is this?", None)


def test_a_closed_model_says_so_and_leaves_no_thread():
    before = threading.active_count()
    model = FastVLM("mini", dtype="float32")
    model.ask(None, "a", max_new_tokens=1)
    model.close()
    model.close()
    assert threading.active_count() == before
    for ask in (lambda: model.ask(None, "a"), lambda: list(model.stream(None, "a"))):
        with pytest.raises(UsageError, match="closed"):
            ask()


def test_coroutines(answer):
    async def run():
        async with AsyncFastVLM("mini", dtype="float32") as model:
            together = await asyncio.gather(*(model.ask(STAR, WHAT) for _ in range(3)))
            pieces = [piece async for piece in model.stream(STAR, WHAT)]
            chat = model.chat()
            said = await chat.ask(WHAT, STAR)
            return [*together, "".join(pieces), said, *await model.batch([(STAR, WHAT)])]

    assert asyncio.run(run()) == [answer] * 6


def test_what_cannot_be_opened_is_an_error():
    with pytest.raises(FastVlmError, match="There is no folder"):
        FastVLM("./nowhere")
    with pytest.raises(UsageError, match="device is 'tpu'"):
        FastVLM("mini", device="tpu")
