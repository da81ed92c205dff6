"""NaN and infinity end a request with an error that says where they arose; they never become tokens."""

import engines
import pytest
import tiny
import torch

from fastvlm.engine.types import SamplingParams
from fastvlm.errors import NonFiniteError

NAN, INFINITY = float("nan"), float("inf")
SAMPLED = SamplingParams(max_new_tokens=4, temperature=0.8, top_k=5, top_p=0.9, seed=1)
GREEDY = SamplingParams(max_new_tokens=4)


def broken(name, value):
    """A tiny model with one element of one weight replaced."""
    model = tiny.model()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


def spoken(engine):
    """`engine` with a processor that writes tokens as numbers."""
    engine.processor = type("Words", (), {"decode": lambda self, ids, **_: " ".join(map(str, ids))})()
    return engine


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.multi_modal_projector.linear_2.bias", "The visual tokens"),
        ("model.language_model.layers.1.mlp.down_proj.weight", "The hidden states of the decoder"),
        ("lm_head.weight", "The logits"),
    ],
)
def test_the_error_says_where_they_arose(name, where, params, value, question):
    engine = spoken(engines.engine(broken(name, value), None))
    with pytest.raises(NonFiniteError, match=f"^{where}.* contain NaN or infinity"):
        engine.generate(question("itt").inputs, params)


def test_nan_in_the_embedding_of_a_token(question):
    model = tiny.model()
    inputs = question("tt").inputs
    with torch.no_grad():
        model.get_input_embeddings().weight[inputs["input_ids"][0, 0]] = NAN
    with pytest.raises(NonFiniteError, match=r"^The token embeddings"):
        spoken(engines.engine(model, None)).generate(inputs, GREEDY)


def test_other_requests_go_on(make_engine, question):
    """The head gives NaN for whichever row belongs to the second request, from its second token on."""
    reference = make_engine(num_slots=2).generate(question("tt").inputs, GREEDY)
    poison = {"is_on": False}

    def make_linear(weight, bias):
        def product(x):
            out = torch.nn.functional.linear(x, weight, bias)
            if poison["is_on"] and len(weight) == tiny.VOCAB and len(out) == 2:
                out[1] = NAN
            return out

        return product

    engine = make_engine(num_slots=2, make_linear=make_linear)
    good, bad = (engine.submit(question(layout).inputs, GREEDY) for layout in ("tt", "ttt"))
    events = []
    while engine.has_work:
        poison["is_on"] = engine.num_running == 2 and len(events) >= 2
        events += engine.step()
    last = {event.request_id: event for event in events if event.finish_reason is not None}
    assert last[good].completion.token_ids == reference.token_ids
    assert isinstance(last[bad].error, NonFiniteError)
    assert last[bad].finish_reason == "error"


def test_tokens_that_a_guide_rules_out_are_no_error(engine, question):
    class OnlySeven:
        def allowed_mask(self):
            return torch.arange(tiny.VOCAB) == 7

        def accept(self, token_id):
            pass

        def forced_tokens(self):
            return []

    request_id = engine.submit(question("tt").inputs, GREEDY, guide=OnlySeven())
    events = []
    while engine.has_work:
        events += engine.step()
    assert {event.token_id for event in events if event.request_id == request_id} == {7}


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_generate_refuses_them_too(settings):
    model = broken("lm_head.weight", NAN)
    with pytest.raises(NonFiniteError, match="The logits"):
        model.generate(input_ids=torch.tensor([tiny.prompt("tt")]), max_new_tokens=3, pad_token_id=0, **settings)
