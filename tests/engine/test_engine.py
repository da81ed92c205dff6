"""The engine says what `generate` says, whoever else is in the batch, whatever is cached."""

import pytest
import tiny
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastvlm.engine.sampling import gumbel_noise
from fastvlm.engine.types import SamplingParams

LAYOUTS = ["ttttt", "titt", "ittitt", "iitt", "t", "tttttttti"]
SAMPLED = {"temperature": 1.0, "max_new_tokens": 12}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_alone(layout, engine, model, question, short):
    asked = question(layout)
    assert engine.generate(asked.inputs, short).token_ids == asked.generated(model)


def test_together(engine, model, question, short, drain):
    """More requests than slots, of different lengths, with different numbers of images."""
    asked = [question(layout, seed=n, image_seed=n) for n, layout in enumerate(LAYOUTS)]
    requests = [engine.submit(one.inputs, short) for one in asked]
    tokens, last = drain(engine)
    assert [tokens[request] for request in requests] == [one.generated(model) for one in asked]
    assert all(last[request].completion.token_ids == tokens[request] for request in requests)


@pytest.mark.parametrize("steps_before", [1, 2, 5])
def test_joined_late(steps_before, engine, model, question, short, drain):
    first, second = question("tittt", seed=3), question("ttti", seed=4, image_seed=9)
    one = engine.submit(first.inputs, short)
    early = [event for _ in range(steps_before) for event in engine.step()]
    assert len(early) == steps_before, "one token a step"
    two = engine.submit(second.inputs, short)
    tokens, _ = drain(engine)
    assert (*(event.token_id for event in early), *tokens[one]) == first.generated(model)
    assert tokens[two] == second.generated(model)


def test_beside_one_that_is_cancelled(engine, model, question, short, drain):
    stays, goes = question("tittt", seed=3), question("ttti", seed=4)
    one, two = engine.submit(stays.inputs, short), engine.submit(goes.inputs, short)
    early = [event for _ in range(4) for event in engine.step()]
    assert engine.cancel(two) and not engine.cancel(two)
    assert engine.num_running == 1, "the slot is free at once"
    tokens, last = drain(engine)
    assert (*(e.token_id for e in early if e.request_id == one), *tokens[one]) == stays.generated(model)
    assert last[two].finish_reason == "cancelled" and last[two].token_id is None
    said = last[two].completion.token_ids
    assert said == goes.generated(model)[: len(said)] and len(said) == 3


def test_a_cancelled_ones_slot_is_taken_in_the_next_step(make_engine, model, question, short, drain):
    engine = make_engine(num_slots=1)
    one, two = (engine.submit(question("tt", seed=seed).inputs, short) for seed in (1, 2))
    engine.step()
    engine.cancel(one)
    assert [(event.request_id, event.finish_reason) for event in engine.step()] == [(one, "cancelled"), (two, None)]
    tokens, _ = drain(engine)
    assert tokens[two] == question("tt", seed=2).generated(model)[1:]


def test_a_waiting_one_is_cancelled_too(make_engine, question, short, drain):
    engine = make_engine(num_slots=1)
    engine.submit(question("tt").inputs, short)
    waiting = engine.submit(question("ttt").inputs, short)
    engine.step()
    assert engine.cancel(waiting) and engine.num_waiting == 0
    _, last = drain(engine)
    assert last[waiting].completion.token_ids == () and last[waiting].completion.timings.ttft is None


# ------------------------------------------------------------------------------------------ prefixes and images


def test_a_second_question_about_an_image_computes_only_what_is_new(engine, encoder, model, short):
    image, ids = tiny.images(1), tiny.prompt("ti")
    for number, tail in enumerate((tiny.prompt("ttt", seed=5), tiny.prompt("tttt", seed=6))):
        inputs = {"input_ids": torch.tensor([[*ids, *tail]]), "pixel_values": image.clone()}
        reply = engine.generate(inputs, short)
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, len(ids) + len(tail) :]
        assert reply.token_ids == tuple(expected.tolist())
        assert reply.usage.cached_prompt_tokens == number * len(ids)
        assert reply.usage.image_tokens == 4
    assert encoder.calls == [1]


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_conversation_goes_on(num_slots, make_engine, model, encoder, short):
    engine, image, ids = make_engine(num_slots=num_slots), tiny.images(1), tiny.prompt("titt")
    for turn in range(3):
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": image}
        reply = engine.generate(inputs, short)
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert reply.token_ids == tuple(expected.tolist())
        # All of the turn before is there, but its last token, which was said and not read.
        assert reply.usage.cached_prompt_tokens == (len(ids) - 4 if turn else 0)
        ids = [*ids, *reply.token_ids, *tiny.prompt("ttt", seed=turn)]
    assert encoder.calls == [1]


def test_a_prefix_of_a_running_request_is_taken_over(engine, model, question, short, drain):
    image, head = tiny.images(1), tiny.prompt("tit", seed=8)
    prompts = [[*head, *tiny.prompt("tt", seed=seed)] for seed in (1, 2)]
    inputs = [{"input_ids": torch.tensor([ids]), "pixel_values": image} for ids in prompts]
    requests = [engine.submit(one, short) for one in inputs]
    tokens, last = drain(engine)
    for request, one, ids in zip(requests, inputs, prompts, strict=True):
        expected = model.generate(**one, max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert tokens[request] == tuple(expected.tolist())
    assert [last[request].completion.usage.cached_prompt_tokens for request in requests] == [0, len(head)]


def test_the_same_prompt_again(engine, model, encoder, question, short):
    """All but the last token is there; that one may be an image's, whose embeds are then needed again."""
    for layout in ("tit", "tti", "itti"):
        asked = question(layout)
        replies = [engine.generate(asked.inputs, short) for _ in range(2)]
        assert [reply.token_ids for reply in replies] == [asked.generated(model)] * 2
        assert replies[1].usage.cached_prompt_tokens == len(asked.ids) - 1


def test_the_same_place_with_another_image_is_encoded_and_computed(engine, model, encoder, question, short):
    first, second = question("titt", image_seed=1), question("titt", image_seed=2)
    assert engine.generate(first.inputs, short).token_ids == first.generated(model)
    reply = engine.generate(second.inputs, short)
    assert reply.token_ids == second.generated(model) != first.generated(model)
    assert reply.usage.cached_prompt_tokens == 1, "the token before the image"
    assert encoder.calls == [1, 1]


def test_images_are_known_wherever_they_stand(engine, model, encoder, short):
    one, two, three = tiny.images(3)
    for images in ([one, two], [two, one], [one, one, three], [three]):
        inputs = {"input_ids": torch.tensor([tiny.prompt("t" + "it" * len(images))])}
        inputs["pixel_values"] = torch.stack(images)
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert engine.generate(inputs, short).token_ids == tuple(expected.tolist())
    assert encoder.calls == [2, 1], "the third when it first came"


def test_forgetting(engine, encoder, question, short):
    asked = question("titt")
    engine.generate(asked.inputs, short)
    engine.forget()
    assert engine.generate(asked.inputs, short).usage.cached_prompt_tokens == 0
    assert encoder.calls == [1, 1]


def test_without_memory_for_images_it_works_too(make_engine, model, question, short):
    engine, asked = make_engine(image_cache_bytes=0), question("iti")
    assert engine.generate(asked.inputs, short).token_ids == asked.generated(model)


# ------------------------------------------------------------------------------------------ sampling


def test_sampled_replies_do_not_depend_on_their_company(engine, make_engine, question, drain):
    asked = [question(layout, seed=n) for n, layout in enumerate(("tt", "titt", "itti"))]
    settings = [
        SamplingParams(seed=5, **SAMPLED),
        SamplingParams(seed=5, top_p=0.9, repetition_penalty=1.2, **SAMPLED),
        SamplingParams(seed=7, top_k=10, min_p=0.02, **SAMPLED),
    ]
    pairs = list(zip(asked, settings, strict=True))
    alone = [make_engine().generate(one.inputs, params).token_ids for one, params in pairs]
    engine.submit(question("tttt").inputs, SamplingParams(**SAMPLED))  # unseeded company
    engine.step()
    requests = [engine.submit(one.inputs, params) for one, params in pairs]
    tokens, _ = drain(engine)
    assert [tokens[request] for request in requests] == alone
    assert len(set(alone)) == 3


class Noise(LogitsProcessor):
    """Makes the likeliest token of `generate` a draw: adds a request's noise after transformers' own filters."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        return scores + gumbel_noise(scores[0], self.generator)


FILTERS = {
    "none": ({}, []),
    "repetition_penalty": ({"repetition_penalty": 1.5}, [RepetitionPenaltyLogitsProcessor(1.5)]),
    "top_k": ({"top_k": 5}, [TopKLogitsWarper(5)]),
    "top_p": ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
    "min_p": ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_sampled_replies_are_those_of_generate_with_the_same_filters_and_noise(name, engine, model, question):
    asked, (settings, theirs) = question("titt"), FILTERS[name]
    steps = [TemperatureLogitsWarper(1.2), *theirs, Noise(3)]
    if name == "repetition_penalty":
        steps = [*theirs, TemperatureLogitsWarper(1.2), Noise(3)]
    expected = model.generate(
        **asked.inputs, max_new_tokens=12, do_sample=False, logits_processor=LogitsProcessorList(steps)
    )
    reply = engine.generate(asked.inputs, SamplingParams(temperature=1.2, max_new_tokens=12, seed=3, **settings))
    assert reply.token_ids == tuple(expected[0, len(asked.ids) :].tolist()) != asked.generated(model)


def test_a_greedy_reply_with_a_penalty_is_that_of_generate(engine, model, question):
    asked = question("titt")
    expected = model.generate(**asked.inputs, max_new_tokens=12, do_sample=False, repetition_penalty=1.7)
    reply = engine.generate(asked.inputs, SamplingParams(repetition_penalty=1.7, max_new_tokens=12))
    assert reply.token_ids == tuple(expected[0, len(asked.ids) :].tolist()) != asked.generated(model)


def test_logprobs_are_those_of_the_models_logits(engine, model, question):
    asked = question("titt")
    reply = engine.generate(asked.inputs, SamplingParams(max_new_tokens=4, logprobs=3))
    with torch.no_grad():
        ids = torch.tensor([[*asked.ids, *reply.token_ids]])
        logprobs = model(ids, pixel_values=asked.inputs["pixel_values"]).logits[0].log_softmax(-1)
    assert len(reply.logprobs) == len(reply.token_ids)
    for place, (token, found) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
        row = logprobs[len(asked.ids) - 1 + place]
        assert found.token == pytest.approx(float(row[token]), abs=1e-4)
        assert [one for one, _ in found.top] == row.topk(3).indices.tolist()
