"""`generate`: it ends, it encodes once, batches equal singles, what cannot fit is refused before it is computed."""

import warnings

import pytest
import tiny
import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration
from fastvlm.errors import ContextLengthError, ImageTokenMismatchError
from fastvlm.hf.cache_name import CACHE_NAME
from fastvlm.hf.generation import _warn_of_emulated_bfloat16

NO_IMAGE = {"bad_words_ids": [[tiny.IMAGE_ID]]}


class ScriptedHead(nn.Module):
    """A head that says the tokens of a script one after the other, then the last one for ever."""

    def __init__(self, head, script):
        super().__init__()
        self.weight, self.script, self.step = head.weight, script, 0

    def forward(self, hidden):
        token = self.script[min(self.step, len(self.script) - 1)]
        self.step += 1
        logits = torch.zeros(*hidden.shape[:2], self.weight.shape[0])
        logits[..., token] = 100.0
        return logits


class EncoderCalls:
    """Counts calls of the encoder and the images in them."""

    def __init__(self, model):
        self.images = []
        model.model.vision_tower.timm_model.register_forward_hook(self)

    def __call__(self, module, args, output):
        self.images.append(len(args[0]))


@pytest.fixture
def qwen2():
    """A tiny decoder with Qwen2's own vocabulary, so that the ids of its end tokens are the real ones."""
    text = tiny.text_config(vocab_size=151_680, eos_token_id=151643, pad_token_id=None, num_hidden_layers=1)
    config = FastVlmConfig(text_config=text, vision_config=tiny.vision_config())
    return FastVlmForConditionalGeneration(config).eval()


CONFIGS = {
    "none": {},
    "config_without_end": {"generation_config": GenerationConfig(max_new_tokens=9)},
    "config_with_another_end": {"generation_config": GenerationConfig(max_new_tokens=9, eos_token_id=77)},
    "argument": {"eos_token_id": 77},
    "argument_list": {"eos_token_id": [77, 78]},
    "argument_tensor": {"eos_token_id": torch.tensor([77])},
    "sampling_as_apple_ships_it": {"do_sample": True, "temperature": None, "top_p": None},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("end", [151645, 151643])
def test_replies_end_whatever_the_generation_config_says(end, how, qwen2):
    qwen2.generation_config = GenerationConfig()  # what Apple's checkpoints come with: no end token
    qwen2.lm_head = ScriptedHead(qwen2.lm_head, [11, 12, end, 13])
    settings = {"max_new_tokens": 9, **CONFIGS[how]}
    if "generation_config" in settings:
        del settings["max_new_tokens"]
    reply = qwen2.generate(input_ids=torch.tensor([[5, 6]]), **settings)
    assert reply[0].tolist()[:5] == [5, 6, 11, 12, end]
    assert reply.shape[1] == 5, "the reply went on after its end"


def test_own_end_tokens_still_end(qwen2):
    qwen2.lm_head = ScriptedHead(qwen2.lm_head, [11, 77, 12])
    reply = qwen2.generate(input_ids=torch.tensor([[5]]), max_new_tokens=9, eos_token_id=77)
    assert reply.tolist() == [[5, 11, 77]]


def test_given_generation_config_is_not_changed(qwen2):
    given = GenerationConfig(max_new_tokens=1, eos_token_id=77)
    before = given.to_dict()
    qwen2.generate(input_ids=torch.tensor([[5]]), generation_config=given)
    qwen2.generate(torch.tensor([[5]]), given)  # by position too
    assert given.to_dict() == before


def test_other_decoders_end_at_their_own_tokens(tiny_model):
    tiny_model.generation_config = GenerationConfig()
    tiny_model.lm_head = ScriptedHead(tiny_model.lm_head, [11, tiny.END_ID])
    assert tiny_model.generate(input_ids=torch.tensor([[5]]), max_new_tokens=9).tolist() == [[5, 11, tiny.END_ID]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 5},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 2},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_each_image_is_encoded_once(settings, tiny_model):
    calls = EncoderCalls(tiny_model)
    inputs = tiny.batch([tiny.prompt("titit"), tiny.prompt("it"), tiny.prompt("tt")])
    tiny_model.generate(**inputs, pixel_values=tiny.images(3), max_new_tokens=5, **NO_IMAGE, **settings)
    assert calls.images == [3]


def test_no_image_no_encoder(tiny_model):
    calls = EncoderCalls(tiny_model)
    tiny_model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=3)
    assert calls.images == []


def test_features_made_before_are_used_again(tiny_model):
    inputs = tiny.batch([tiny.prompt("titt")])
    expected = tiny_model.generate(**inputs, pixel_values=tiny.images(1), max_new_tokens=6)
    with torch.no_grad():
        features = tiny_model.get_image_features(tiny.images(1))
    calls = EncoderCalls(tiny_model)
    for _ in range(2):
        reply = tiny_model.generate(**inputs, mm_encoder_outputs={"image": features}, max_new_tokens=6)
        assert torch.equal(reply, expected)
    assert calls.images == []


LAYOUTS = [["titttt", "it", "iitt"], ["tt", "titit", "i"], ["t", "iiit"]]


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_batched_replies_equal_single_ones(layouts, settings, tiny_model):
    prompts = [tiny.prompt(layout, seed=10 + n) for n, layout in enumerate(layouts)]
    images = tiny.images(sum(layout.count("i") for layout in layouts))
    settings = {"max_new_tokens": 10, **NO_IMAGE, **settings}
    together = tiny_model.generate(**tiny.batch(prompts), pixel_values=images, **settings)
    new = together[:, max(map(len, prompts)) :].tolist()
    first = 0
    for row, layout in enumerate(layouts):
        count = layout.count("i")
        own = {"pixel_values": images[first : first + count]} if count else {}
        first += count
        alone = tiny_model.generate(input_ids=torch.tensor([prompts[row]]), **own, **settings)
        reply = alone[0, len(prompts[row]) :].tolist()
        assert new[row][: len(reply)] == reply
        assert set(new[row][len(reply) :]) <= {tiny.PAD_ID}


def test_the_image_matters(tiny_model):
    inputs = tiny.batch([tiny.prompt("titt")])
    replies = {
        tuple(tiny_model.generate(**inputs, pixel_values=tiny.images(1, seed=s), max_new_tokens=8)[0].tolist())
        for s in range(6)
    }
    assert len(replies) > 1


def test_beams_with_the_wrong_number_of_images_are_told_so(tiny_model):
    inputs = tiny.batch([tiny.prompt("it"), tiny.prompt("it")])
    with pytest.raises(ImageTokenMismatchError, match=r"tokens: 8, features: 4"):
        tiny_model.generate(**inputs, pixel_values=tiny.images(1), max_new_tokens=2, num_beams=2)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_from_embeddings_equals_from_ids(num_beams, tiny_model):
    inputs = tiny.batch([tiny.prompt("titt"), tiny.prompt("itit")])
    images = tiny.images(3)
    settings = {"max_new_tokens": 6, "num_beams": num_beams, **NO_IMAGE}
    expected = tiny_model.generate(**inputs, pixel_values=images, **settings)
    embeds = tiny_model.get_input_embeddings()(inputs["input_ids"])
    reply = tiny_model.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], pixel_values=images, **settings
    )
    assert torch.equal(reply, expected[:, inputs["input_ids"].shape[1] :])


# What cannot fit is refused before anything is computed.


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"max_new_tokens": 250}, r"11 tokens and 250 new ones .* 261 in all; this model's context is 256 tokens"),
        ({"max_length": 300}, r"11 tokens and 289 new ones .* 300 in all"),
        ({"generation_config": GenerationConfig(max_new_tokens=999)}, r"11 tokens and 999 new ones"),
    ],
)
def test_too_long_is_refused_before_it_costs_anything(settings, numbers, tiny_model):
    calls = EncoderCalls(tiny_model)
    with pytest.raises(ContextLengthError, match=numbers):
        tiny_model.generate(**tiny.batch([tiny.prompt("tttitttt")]), pixel_values=tiny.images(1), **settings)
    assert calls.images == []


def test_exactly_the_context_is_allowed(tiny_model):
    tiny_model.lm_head = ScriptedHead(tiny_model.lm_head, [9])
    prompt = torch.full((1, 250), 7)
    assert tiny_model.generate(input_ids=prompt, max_new_tokens=6).shape == (1, 256)
    with pytest.raises(ContextLengthError):
        tiny_model.generate(input_ids=prompt, max_new_tokens=7)


def test_a_prompt_longer_than_the_context_is_refused_without_a_length(tiny_model):
    with pytest.raises(ContextLengthError, match=r"300 tokens and 1 new ones"):
        tiny_model.generate(input_ids=torch.full((1, 300), 7))


# Streaming, stopping, continuing.


class Recorder(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens.extend(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_streamed_tokens_are_the_reply(tiny_model):
    inputs = tiny.batch([tiny.prompt("titt")])
    recorder = Recorder()
    reply = tiny_model.generate(**inputs, pixel_values=tiny.images(1), max_new_tokens=7, streamer=recorder)
    assert recorder.tokens == reply[0].tolist()
    assert recorder.ended


def test_text_streamer_of_transformers(tiny_model):
    class Numbers:
        """Stands for a tokenizer: ids as decimal words."""

        def decode(self, ids, **kwargs):
            return "".join(f"{int(i)} " for i in ids)

    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True)
    inputs = tiny.batch([tiny.prompt("titt")])
    reply = tiny_model.generate(**inputs, pixel_values=tiny.images(1), max_new_tokens=5, streamer=streamer)
    assert "".join(streamer).split() == [str(i) for i in reply[0, inputs["input_ids"].shape[1] :].tolist()]


def test_stopping_criteria_stop(tiny_model):
    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 8)

    inputs = tiny.batch([tiny.prompt("it")])
    reply = tiny_model.generate(
        **inputs, pixel_values=tiny.images(1), max_new_tokens=50, stopping_criteria=[Third()], eos_token_id=[1]
    )
    assert reply.shape[1] <= 8


def test_a_second_turn_continues_from_the_cache(tiny_model):
    first = tiny.prompt("titt")
    images = tiny.images(1)
    turn = tiny_model.generate(
        input_ids=torch.tensor([first]),
        pixel_values=images,
        max_new_tokens=4,
        return_dict_in_generate=True,
        **NO_IMAGE,
    )
    question = torch.cat([turn.sequences, torch.tensor([tiny.prompt("ttt", seed=5)])], dim=1)
    cached = tiny_model.generate(input_ids=question, max_new_tokens=5, **{CACHE_NAME: turn[CACHE_NAME]}, **NO_IMAGE)
    anew = tiny_model.generate(input_ids=question, pixel_values=images, max_new_tokens=5, **NO_IMAGE)
    assert torch.equal(cached, anew)


def test_prompt_lookup_decoding_gives_the_same_tokens(tiny_model):
    inputs = tiny.batch([tiny.prompt("tittt")])
    images = tiny.images(1)
    settings = {"max_new_tokens": 8, "do_sample": False}
    plain = tiny_model.generate(**inputs, pixel_values=images, **settings)
    looked_up = tiny_model.generate(**inputs, pixel_values=images, prompt_lookup_num_tokens=3, **settings)
    assert torch.equal(plain, looked_up)


def test_no_gradients_are_kept(tiny_model):
    inputs = tiny.batch([tiny.prompt("it")])
    reply = tiny_model.generate(
        **inputs, pixel_values=tiny.images(1), max_new_tokens=2, output_logits=True, return_dict_in_generate=True
    )
    assert not reply.logits[0].requires_grad


def test_inputs_are_left_as_they_were(tiny_model):
    inputs = {**tiny.batch([tiny.prompt("it")]), "pixel_values": tiny.images(1)}
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    tiny_model.generate(**inputs, max_new_tokens=3, num_beams=2)
    assert all(torch.equal(before[name], inputs[name]) for name in before)


@pytest.mark.parametrize(("dtype", "has_arithmetic"), [("bfloat16", False), ("bfloat16", True), ("float32", False)])
def test_emulated_bfloat16_is_said_once(dtype, has_arithmetic, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_arithmetic)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    _warn_of_emulated_bfloat16.cache_clear()
    model = tiny.model().to(getattr(torch, dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model.generate(input_ids=torch.tensor([tiny.prompt("tt")]), max_new_tokens=1, **NO_IMAGE)
    said = [one for one in caught if "bfloat16" in str(one.message)]
    assert len(said) == (1 if dtype == "bfloat16" and not has_arithmetic else 0)
    assert all("dtype=torch.float32" in str(one.message) for one in said)
    _warn_of_emulated_bfloat16.cache_clear()
