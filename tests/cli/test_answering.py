"""The model run with a stopwatch: what is streamed, counted and measured."""

import parrot
import pytest
from PIL import Image

import fastvlm as package
from fastvlm.backends.local import LocalBackend
from fastvlm.cli.answering import Answerer
from fastvlm.cli.choices import Sampling
from fastvlm.cli.opening import system_message, user_message
from fastvlm.engine import engine
from fastvlm.errors import ContextLengthError


@pytest.fixture(scope="module")
def opened(parrot_folder):
    return package.load(parrot_folder, device="cpu")


def answerer(opened, **sampling):
    return Answerer(engine.Engine.from_model(*opened, num_slots=1), Sampling(**sampling), load_ms=5.0)


def red():
    return Image.new("RGB", (30, 20), "red")


def blue():
    return Image.new("RGB", (20, 30), "blue")


def test_pieces_are_the_answer(opened):
    shown: list[str] = []
    reply = answerer(opened).reply([user_message([red()], "What?")], shown.append)
    assert "".join(shown) == reply.text == parrot.SENTENCE
    assert len(shown) > 5, "streamed, not given at the end"


def test_the_answer_is_that_of_generate(opened):
    model, processor = opened
    messages = [*system_message("Be brief."), user_message([red(), red()], "What?")]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    reply = answerer(opened).reply(messages)
    assert reply.text == processor.decode(ids, skip_special_tokens=True)
    assert reply.usage.completion_tokens == len(ids)
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_what_was_spent_before_is_part_of_preprocessing_and_ttft(opened):
    asking = answerer(opened)
    reply = asking.reply([user_message([red()], "What?")], opening_ms=10_000.0)
    assert reply.timings.load == 5.0
    assert 10_000 < reply.timings.preprocess < reply.timings.ttft <= reply.timings.total
    assert reply.timings.encode < 10_000


def test_overflow_is_refused_before_the_encoder_runs(opened, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(LocalBackend, "encode", refuse)
    with pytest.raises(ContextLengthError, match=str(parrot.CONTEXT)):
        answerer(opened, max_new_tokens=parrot.CONTEXT).reply([user_message([red()], "What?")])


def test_an_image_seen_again_is_not_encoded_again_until_forgotten(opened, monkeypatch):
    calls = []
    original = LocalBackend.encode

    def count(self, pixel_values):
        calls.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(LocalBackend, "encode", count)
    asking = answerer(opened)
    asking.reply([user_message([red()], "What?")])
    asking.reply([user_message([red(), blue()], "What?")])
    asking.reply([user_message([blue(), red()], "What?")])
    assert calls == [1, 1], "what is in an image counts, not which object holds it"
    asking.forget()
    asking.reply([user_message([red()], "What?")])
    assert calls == [1, 1, 1]


def test_order_of_images_reaches_the_model(opened, monkeypatch):
    """Features kept from earlier turns are put in the order of the places, whatever the order they were seen in."""
    given = []
    original = engine.join_image_and_text

    def spy(inputs_embeds, image_embeds, is_placeholder):
        given.append(image_embeds)
        return original(inputs_embeds, image_embeds, is_placeholder)

    monkeypatch.setattr(engine, "join_image_and_text", spy)
    asking = answerer(opened)
    asking.reply([user_message([red(), blue()], "What?")])
    asking.reply([user_message([blue(), red()], "What?")])
    assert given[0].flip(0).equal(given[1]) and not given[0][0].equal(given[0][1])


def test_a_conversation_that_goes_on_computes_only_what_is_new(opened):
    asking = answerer(opened)
    messages = [user_message([red()], "What?")]
    first = asking.reply(messages)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": first.text}]}, user_message([], "And?")]
    second = asking.reply(messages)
    assert first.usage.cached_prompt_tokens == 0
    assert second.usage.cached_prompt_tokens >= first.usage.prompt_tokens
    assert second.text == parrot.SENTENCE
    asking.forget()
    assert asking.reply(messages).usage.cached_prompt_tokens == 0


def test_a_reply_that_is_broken_off_leaves_the_slot_free(opened):
    asking = answerer(opened)

    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asking.reply([user_message([red()], "What?")], stop)
    assert asking.engine.num_running == 0
    assert asking.reply([user_message([red()], "What?")]).text == parrot.SENTENCE


def test_a_silent_reply(tmp_path, opened):
    """A model that ends at once: no text, no time of a first text, no rate."""
    model = opened[0]
    stop = model.config.stop_token_ids[0]
    weights = model.lm_head.weight.detach().clone()
    try:
        model.lm_head.weight.data.zero_()
        model.lm_head.weight.data[stop] = 1.0
        reply = answerer(opened, max_new_tokens=1).reply([user_message([], "What?")])
    finally:
        model.lm_head.weight.data.copy_(weights)
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == ("", "stop", 1)
    assert reply.timings.ttft is None and reply.tokens_per_second is None
    assert reply.as_dict()["timings_ms"]["ttft"] is None
