"""The decoder over slots equals the model it is made of, prompt and steps, alone and side by side."""

import copy

import engines
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from fastvlm.backends.cached_attention import attend_rows_together
from fastvlm.backends.decoder import Decoder
from fastvlm.errors import ConfigError

CONTEXT = 64
PROMPTS = [tiny.prompt("t" * length, seed=length) for length in (3, 9, 6)]


@pytest.fixture(scope="module", params=["own_head", "tied_head", "one_kv_head"])
def model(request):
    text = {"own_head": {}, "tied_head": {"tie_word_embeddings": True}, "one_kv_head": {"num_key_value_heads": 1}}
    return tiny.model(text=text[request.param])


def expected(model, ids):
    """The model's own logits (T, V)."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_prompt(model):
    decoder = engines.decoder(model, num_slots=2, context=CONTEXT)
    for slot, ids in enumerate(PROMPTS[:2]):
        assert_same(engines.prefilled(decoder, decoder.embed(ids), slot), expected(model, ids)[-1])


def test_a_prompt_of_one_token(model):
    decoder = engines.decoder(model, num_slots=1, context=CONTEXT)
    assert_same(engines.prefilled(decoder, decoder.embed([5]), 0), expected(model, [5])[-1])


@pytest.mark.parametrize("start", [1, 4, 8])
def test_a_prompt_that_continues_what_the_slot_holds(model, start):
    decoder = engines.decoder(model, num_slots=2, context=CONTEXT)
    ids = PROMPTS[1]
    engines.prefilled(decoder, decoder.embed(ids[:start]), 1)
    assert_same(engines.prefilled(decoder, decoder.embed(ids[start:]), 1, start), expected(model, ids)[-1])


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_prompt_in_chunks(model, size):
    decoder = engines.decoder(model, num_slots=2, context=CONTEXT)
    ids, theirs = PROMPTS[1], expected(model, PROMPTS[1])
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        hidden = decoder.prefill_chunk(decoder.embed(chunk), 1, start)
        assert_same(decoder.logits(hidden)[0], theirs[start + len(chunk) - 1])


def test_a_prefix_copied_from_another_slot(model):
    decoder = engines.decoder(model, num_slots=2, context=CONTEXT)
    ids = PROMPTS[1]
    engines.prefilled(decoder, decoder.embed([*ids[:5], 7, 8]), 0)
    decoder.cache.copy_prefix(0, 1, 5)
    assert_same(engines.prefilled(decoder, decoder.embed(ids[5:]), 1, 5), expected(model, ids)[-1])


def test_what_a_slot_held_beyond_the_prefix_does_not_show(model):
    decoder = engines.decoder(model, num_slots=1, context=CONTEXT)
    engines.prefilled(decoder, decoder.embed(tiny.prompt("t" * 30, seed=9)), 0)
    assert_same(engines.prefilled(decoder, decoder.embed(PROMPTS[0]), 0), expected(model, PROMPTS[0])[-1])


def test_steps_of_one_slot(model):
    decoder = engines.decoder(model, num_slots=3, context=CONTEXT)
    ids, theirs = PROMPTS[1], expected(model, PROMPTS[1])
    engines.prefilled(decoder, decoder.embed(ids[:3]), 2)
    for position in range(3, len(ids)):
        ours = decoder.decode([ids[position]], [2], [position])
        assert ours.shape == (1, tiny.VOCAB)
        assert_same(ours[0], theirs[position])


def together(cache, slots, positions):
    return attend_rows_together(cache, torch.tensor(slots), torch.tensor(positions), max(positions) + 1)


@pytest.mark.parametrize("is_together", [False, True], ids=["one_by_one", "one_masked_product"])
@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 0, 1]])
def test_steps_of_several_slots(model, slots, is_together, monkeypatch):
    if is_together:  # what other devices than the CPU do
        monkeypatch.setattr("fastvlm.backends.decoder.attend_rows", together)
    decoder = engines.decoder(model, num_slots=4, context=CONTEXT)
    continuation = tiny.prompt("t" * 4, seed=77)
    for slot, ids in zip(slots, PROMPTS, strict=True):
        engines.prefilled(decoder, decoder.embed(ids), slot)
    for step, token in enumerate(continuation):
        positions = [len(ids) + step for ids in PROMPTS]
        logits = decoder.decode([token] * 3, slots, positions)
        for row, ids in enumerate(PROMPTS):
            assert_same(logits[row], expected(model, [*ids, *continuation[: step + 1]])[-1])


@pytest.mark.parametrize("slots", [[1], [2, 0, 1]])
def test_steps_of_fixed_shape(model, slots):
    decoder = engines.decoder(model, num_slots=4, context=CONTEXT, has_fixed_shapes=True)
    usual = engines.decoder(model, num_slots=4, context=CONTEXT)
    prompts = PROMPTS[: len(slots)]
    for slot, ids in zip(slots, prompts, strict=True):
        for each in (decoder, usual):
            engines.prefilled(each, each.embed(ids), slot)
    for step, token in enumerate(tiny.prompt("t" * 4, seed=77)):
        positions = [len(ids) + step for ids in prompts]
        step_of = ([token] * len(slots), slots, positions)
        assert_same(decoder.decode(*step_of), usual.decode(*step_of))


@pytest.mark.parametrize("has_fixed_shapes", [False, True])
@pytest.mark.parametrize("lengths", [[5], [1, 3, 2], [2, 1]])
def test_steps_of_several_tokens(model, lengths, has_fixed_shapes):
    """Each row has the logits after its own token; what a step wrote too much is overwritten by the next."""
    decoder = engines.decoder(model, num_slots=3, context=CONTEXT, has_fixed_shapes=has_fixed_shapes)
    prompts = PROMPTS[: len(lengths)]
    for slot, ids in enumerate(prompts):
        engines.prefilled(decoder, decoder.embed(ids), slot)
    slots = [slot for slot, length in enumerate(lengths) for _ in range(length)]
    positions = [len(prompts[slot]) + i for slot, length in enumerate(lengths) for i in range(length)]
    for seed in (77, 78):
        tokens = tiny.prompt("t" * len(slots), seed=seed)
        logits = decoder.decode(tokens, slots, positions)
        assert logits.shape == (len(slots), tiny.VOCAB)
        first = 0
        for ids, length in zip(prompts, lengths, strict=True):
            rows = slice(first, first + length)
            assert_same(logits[rows], expected(model, [*ids, *tokens[rows]])[-length:])
            first += length


def test_positions_beyond_the_first_table():
    model = tiny.model(text={"max_position_embeddings": 3000})
    decoder = engines.decoder(model, num_slots=1, context=3000)
    ids = tiny.prompt("t" * 1500)
    assert_same(engines.prefilled(decoder, decoder.embed(ids), 0), expected(model, ids)[-1])
    ours = [decoder.decode([5], [0], [position]) for position in range(1500, 1503)]
    assert_same(ours[-1][0], expected(model, [*ids, 5, 5, 5])[-1])


@pytest.mark.parametrize(
    "rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}], ids=str
)
def test_scaled_positions(rope):
    text = {"rope_parameters": {"rope_theta": 10000.0, "original_max_position_embeddings": 64, **rope}}
    model = tiny.model(text=text)
    decoder = engines.decoder(model, num_slots=1, context=CONTEXT)
    assert_same(engines.prefilled(decoder, decoder.embed(PROMPTS[1]), 0), expected(model, PROMPTS[1])[-1])


def test_bfloat16():
    model = tiny.model().bfloat16()
    decoder = engines.decoder(model, num_slots=1, context=CONTEXT)
    assert decoder.cache.layers[0].dtype == torch.bfloat16
    ours, theirs = engines.prefilled(decoder, decoder.embed(PROMPTS[1]), 0), expected(model, PROMPTS[1])[-1]
    assert ours.dtype == torch.bfloat16
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_model_with_a_decoder_over_it_stays_what_it_was():
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = expected(model, PROMPTS[1])
    engines.decoder(model, num_slots=1, context=CONTEXT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_same(expected(model, PROMPTS[1]), logits)


def test_decoders_may_share_their_weights(model):
    first = engines.decoder(model, num_slots=1, context=CONTEXT)
    second = Decoder(first.weights, num_slots=2, context=CONTEXT)
    for each in (first, second):
        assert_same(engines.prefilled(each, each.embed(PROMPTS[1]), 0), expected(model, PROMPTS[1])[-1])


def test_a_model_with_a_decoder_over_it_can_still_be_saved(tmp_path):
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engines.decoder(model, num_slots=1, context=CONTEXT)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_products_are_exchangeable(model):
    """Every product of the decoder and the head goes through the factory."""
    shapes = []

    def doubled_then_halved(weight, bias):
        shapes.append(tuple(weight.shape))
        return lambda x: F.linear(x, 2 * weight, None if bias is None else 2 * bias) / 2

    decoder = engines.decoder(model, num_slots=1, context=CONTEXT, make=engines.maker(doubled_then_halved))
    kv = model.config.text_config.num_key_value_heads * 8
    layer = [(32 + 2 * kv, 32), (32, 32), (2 * 48, 32), (32, 48)]
    assert shapes == [(tiny.VOCAB, 32), *layer, *layer]
    assert_same(engines.prefilled(decoder, decoder.embed(PROMPTS[1]), 0), expected(model, PROMPTS[1])[-1])


class Adapted(nn.Linear):
    """A layer that does more than multiply, as LoRA's does."""

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


def test_layers_that_are_no_plain_linears_are_called(model):
    model = copy.deepcopy(model)
    for layer in model.model.language_model.layers:
        for owner, name in ((layer.self_attn, "k_proj"), (layer.mlp, "up_proj")):
            getattr(owner, name).__class__ = Adapted
    decoder = engines.decoder(model, num_slots=1, context=CONTEXT)
    assert_same(engines.prefilled(decoder, decoder.embed(PROMPTS[1]), 0), expected(model, PROMPTS[1])[-1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding windows"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' positions"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_other_decoders_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        engines.decoder(tiny.model(text=text), num_slots=1, context=CONTEXT)
