"""An answer as the command shows it, over a `FastVLM` with one slot: what is streamed, kept, and measured."""

import parrot
import pytest
from PIL import Image

import fastvlm as package
from fastvlm import FastVLM
from fastvlm.api import assistant_message, system_message, user_message
from fastvlm.backends.local import LocalBackend
from fastvlm.cli.reply import Reply, written
from fastvlm.engine import engine
from fastvlm.engine.types import Completion, Timings, Usage
from fastvlm.errors import ContextLengthError


@pytest.fixture
def model(parrot_folder):
    with FastVLM(str(parrot_folder), device="cpu", num_slots=1) as opened:
        yield opened


def ask(model, messages, write=lambda _: None, **sampling):
    return written(model.events(messages, **sampling), write)


def red():
    return Image.new("RGB", (30, 20), "red")


def blue():
    return Image.new("RGB", (20, 30), "blue")


def test_pieces_are_the_answer(model):
    shown: list[str] = []
    reply = ask(model, [user_message([red()], "What?")], shown.append)
    assert "".join(shown) == reply.text == parrot.SENTENCE
    assert len(shown) > 5, "streamed, not given at the end"


def test_the_answer_is_that_of_generate(model, parrot_folder):
    reference, processor = package.load(parrot_folder, device="cpu")
    messages = [*system_message("Be brief."), user_message([red(), red()], "What?")]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = reference.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    completion = ask(model, messages)
    assert completion.text == processor.decode(ids, skip_special_tokens=True)
    assert completion.usage.completion_tokens == len(ids)
    assert completion.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_what_was_spent_before_is_part_of_preprocessing_and_ttft(model):
    completion = ask(model, [user_message([red()], "What?")])
    times = Reply(completion, load_ms=5.0, opening_ms=10_000.0).timings_ms
    assert times["load"] == 5.0
    assert 10_000 < times["preprocess"] < times["ttft"] <= times["total"]
    assert times["encode"] < 10_000


def test_overflow_is_refused_before_the_encoder_runs(model, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(LocalBackend, "encode", refuse)
    with pytest.raises(ContextLengthError, match=str(parrot.CONTEXT)):
        ask(model, [user_message([red()], "What?")], max_new_tokens=parrot.CONTEXT)


def test_an_image_seen_again_is_not_encoded_again_until_forgotten(model, monkeypatch):
    calls = []
    original = LocalBackend.encode

    def count(self, pixel_values):
        calls.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(LocalBackend, "encode", count)
    ask(model, [user_message([red()], "What?")])
    ask(model, [user_message([red(), blue()], "What?")])
    ask(model, [user_message([blue(), red()], "What?")])
    assert calls == [1, 1], "what is in an image counts, not which object holds it"
    model.forget()
    ask(model, [user_message([red()], "What?")])
    assert calls == [1, 1, 1]


def test_order_of_images_reaches_the_model(model, monkeypatch):
    """Features kept from earlier turns are put in the order of the places, whatever the order they were seen in."""
    given = []
    original = engine.join_image_and_text

    def spy(inputs_embeds, image_embeds, is_placeholder):
        given.append(image_embeds)
        return original(inputs_embeds, image_embeds, is_placeholder)

    monkeypatch.setattr(engine, "join_image_and_text", spy)
    ask(model, [user_message([red(), blue()], "What?")])
    ask(model, [user_message([blue(), red()], "What?")])
    assert given[0].flip(0).equal(given[1]) and not given[0][0].equal(given[0][1])


def test_a_conversation_that_goes_on_computes_only_what_is_new(model):
    messages = [user_message([red()], "What?")]
    first = ask(model, messages)
    messages += [assistant_message(first.text), user_message([], "And?")]
    second = ask(model, messages)
    assert first.usage.cached_prompt_tokens == 0
    assert second.usage.cached_prompt_tokens >= first.usage.prompt_tokens
    assert second.text == parrot.SENTENCE
    model.forget()
    assert ask(model, messages).usage.cached_prompt_tokens == 0


def test_a_reply_that_is_broken_off_leaves_the_slot_free(model):

    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(model, [user_message([red()], "What?")], stop)
    assert ask(model, [user_message([red()], "What?")]).text == parrot.SENTENCE


def test_a_silent_reply():
    """A model that ends at once: no time of a first text, no rate."""
    times = Timings(preprocess=1.0, wait=0.0, encode=0.0, prefill=1.0, ttft=None, total=2.0)
    reply = Reply(Completion(1, "", (0,), "stop", Usage(3, 0, 1), times, None), load_ms=5.0, opening_ms=1.0)
    assert reply.as_dict()["timings_ms"]["ttft"] is None and reply.as_dict()["tokens_per_second"] is None
    assert reply.summary("mini") == "mini · 3 tokens in (0 of images), 1 out · opened in 0.0 s"
