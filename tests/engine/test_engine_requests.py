"""What a request may ask for, how it ends, what is refused, and what its completion tells."""

import engines
import parrot
import pytest
import tiny
import torch
from PIL import Image

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import ContextLengthError, EngineBusyError, ImageTokenMismatchError, UsageError


class Script:
    """Makes a head that says given tokens, whatever the decoder thinks; the last one for ever."""

    def __init__(self, tokens):
        self.tokens, self.step = list(tokens), 0

    def make_linear(self, weight, bias):
        if len(weight) != tiny.VOCAB:
            return lambda x: torch.nn.functional.linear(x, weight, bias)
        return self.say

    def say(self, hidden):
        logits = torch.zeros(len(hidden), tiny.VOCAB)
        logits[:, self.tokens[min(self.step, len(self.tokens) - 1)]] = 9.0
        self.step += 1
        return logits


def test_end_tokens_always_end(make_engine, question):
    for stop in (tiny.END_ID, tiny.PAD_ID):
        engine = make_engine(make_linear=Script([5, 6, stop, 7]).make_linear)
        reply = engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=9))
        assert (reply.token_ids, reply.finish_reason) == ((5, 6, stop), "stop")


def test_the_generation_configs_end_tokens_end_too(question):
    model = tiny.model()
    model.generation_config.eos_token_id = [77, 78]
    engine = engines.engine(model, None, make_linear=Script([5, 78, 7]).make_linear)
    engine.processor = type("Words", (), {"decode": lambda self, ids, **_: " ".join(map(str, ids))})()
    assert engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=9)).token_ids == (5, 78)


def test_cut_by_its_limit(engine, question):
    reply = engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=3))
    assert (len(reply.token_ids), reply.finish_reason) == (3, "length")


def test_stop_strings_end_and_are_not_shown(make_engine, question):
    engine = make_engine(make_linear=Script([5, 6, 7, 8, 9]).make_linear)
    letters = [chr(0x4E00 + token) for token in range(20)]
    params = SamplingParams(max_new_tokens=9, stop=(letters[7] + letters[8],))
    events = list(engine.stream(question("tt").inputs, params))
    assert [event.text for event in events] == [letters[5], letters[6], "", ""]
    assert events[-1].finish_reason == "stop"
    assert events[-1].completion.text == letters[5] + letters[6]
    assert events[-1].completion.token_ids == (5, 6, 7, 8)


def test_what_a_stop_string_held_back_comes_at_the_end(make_engine, question):
    engine = make_engine(make_linear=Script([5, 7, tiny.END_ID]).make_linear)
    params = SamplingParams(max_new_tokens=9, stop=(chr(0x4E00 + 7) + "never",))
    reply = engine.generate(question("tt").inputs, params)
    assert reply.text == chr(0x4E00 + 5) + chr(0x4E00 + 7)


# ------------------------------------------------------------------------------------------ refusals and failures


@pytest.mark.parametrize(
    ("settings", "new_tokens", "words"),
    [({}, 250, "context is 256 tokens"), ({"context": 20}, 15, "a slot of this engine holds 20")],
)
def test_what_cannot_fit_is_refused_before_anything_is_computed(
    settings, new_tokens, words, make_engine, encoder, question
):
    engine = make_engine(**settings)
    with pytest.raises(ContextLengthError, match=words):
        engine.submit(question("titt").inputs, SamplingParams(max_new_tokens=new_tokens))
    assert encoder.calls == [] and not engine.has_work


def test_what_just_fits_is_answered(make_engine, model, question):
    asked = question("titt")
    engine = make_engine(num_slots=1, context=len(asked.ids) + 12)
    assert engine.generate(asked.inputs, SamplingParams(max_new_tokens=12)).token_ids == asked.generated(model)


def test_a_queue_has_an_end(make_engine, question, short):
    engine = make_engine(num_slots=1, max_waiting=2)
    for _ in range(3):
        engine.submit(question("tt").inputs, short)
    with pytest.raises(EngineBusyError, match="3 are waiting"):
        engine.submit(question("tt").inputs, short)
    engine.step()
    with pytest.raises(EngineBusyError, match="1 requests are running and 2 are waiting"):
        engine.submit(question("tt").inputs, short)
    assert engine.num_running == 1 and engine.num_waiting == 2


def test_images_without_a_place_are_told_with_both_counts(engine, question):
    inputs = question("titt").inputs
    for images in (None, tiny.images(2), tiny.images(1, 192, 128)):
        wrong = {"input_ids": inputs["input_ids"]} if images is None else {**inputs, "pixel_values": images}
        with pytest.raises(ImageTokenMismatchError, match="4"):
            engine.submit(wrong)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, "one prompt"), ({"input_ids": [[]]}, "one prompt")],
)
def test_a_request_is_one_prompt(inputs, words, engine):
    with pytest.raises(UsageError, match=words):
        engine.submit(inputs)


def test_padding_is_left_out(engine, model, question, short):
    asked = question("titt")
    padded = tiny.batch([tiny.prompt("t" * 12), asked.ids])
    inputs = {name: tensor[1:] for name, tensor in padded.items()} | {"pixel_values": asked.inputs["pixel_values"]}
    reply = engine.generate(inputs, short)
    assert reply.token_ids == asked.generated(model) and reply.usage.prompt_tokens == len(asked.ids)


def test_a_failure_while_one_begins_is_its_own(make_engine, model, question, short, drain):
    def fail(pixel_values):
        raise MemoryError("the image is too much")

    engine = make_engine(encode=fail)
    fine, wrong = question("ttt"), question("titt")
    one, two = engine.submit(fine.inputs, short), engine.submit(wrong.inputs, short)
    tokens, last = drain(engine)
    assert tokens[one] == fine.generated(model)
    assert last[two].finish_reason == "error" and isinstance(last[two].error, MemoryError)
    assert engine.num_running == 0
    with pytest.raises(MemoryError, match="too much"):
        engine.generate(wrong.inputs, short)


def test_who_stops_listening_cancels(engine, question, short):
    stream = engine.stream(question("titt").inputs, short)
    next(stream)
    assert engine.num_running == 1
    stream.close()
    assert engine.num_running == 0


def test_two_streams_at_once(engine, model, question, short):
    asked = [question("titt", seed=1), question("tt", seed=2)]
    streams = [engine.stream(one.inputs, short) for one in asked]
    tokens = [[], []]
    for events in zip(*streams, strict=True):
        for own, event in zip(tokens, events, strict=True):
            own.append(event.token_id)
    assert [tuple(own) for own in tokens] == [one.generated(model) for one in asked]


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UsageError, match=r"model\.eval"):
        engines.engine(tiny.model().train(), None)


@pytest.mark.parametrize("context", [0, 1, 257])
def test_an_impossible_context_is_refused(context, make_engine):
    with pytest.raises(UsageError, match="expected 2 to 256"):
        make_engine(context=context)


# ------------------------------------------------------------------------------------------ messages and time


@pytest.fixture(scope="module")
def parrot_engine():
    words = parrot.tokenizer()
    model = parrot.model(words)
    model.generation_config.eos_token_id = None
    return engines.engine(model, FastVlmProcessor(FastVlmImageProcessor(image_size=parrot.SIZE_PX), words), num_slots=2)


def messages(*images, text="What is this?"):
    items = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*items, {"type": "text", "text": text}]}]


def test_messages_become_text_in_whole_characters(parrot_engine):
    events = list(parrot_engine.stream(messages(Image.new("RGB", (9, 9), "red"))))
    assert "".join(event.text for event in events) == events[-1].completion.text == parrot.SENTENCE
    assert not any("\ufffd" in event.text for event in events)
    assert len(events) == len(parrot.pieces(parrot.SENTENCE)) + 1, "one event a token"
    assert [event.completion for event in events[:-1]] == [None] * (len(events) - 1)


def test_usage_and_timings_fit_together(parrot_engine):
    parrot_engine.forget()
    image = Image.new("RGB", (9, 9), "blue")
    first = parrot_engine.generate(messages(image))
    second = parrot_engine.generate(messages(image, text="What is that?"))
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    assert first.usage.cached_prompt_tokens == 0 and second.usage.cached_prompt_tokens > first.usage.image_tokens
    assert first.usage.completion_tokens == len(first.token_ids)
    times = first.timings
    assert times.preprocess + times.wait + times.encode + times.prefill <= times.ttft <= times.total
    assert min(times.preprocess, times.encode, times.prefill) > 0 and times.wait >= 0
    assert first.tokens_per_second > 0


def test_one_token_has_no_rate(parrot_engine):
    assert parrot_engine.generate(messages(), SamplingParams(max_new_tokens=1)).tokens_per_second is None


def test_a_waiting_request_says_how_long(make_engine, question):
    ticks = iter(range(10_000))
    engine = make_engine(num_slots=1, clock=lambda: float(next(ticks)))
    first, second = (engine.submit(question("tt").inputs, SamplingParams(max_new_tokens=5)) for _ in range(2))
    last = {}
    while engine.has_work:
        last |= {event.request_id: event.completion for event in engine.step() if event.completion}
    assert last[second].timings.wait > last[first].timings.wait >= 1000
    assert last[second].timings.ttft > last[second].timings.wait


def test_bytes_per_token_are_told(engine):
    assert engine.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
