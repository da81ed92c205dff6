"""Picking a token: the filters are transformers', the random numbers a request's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastvlm.engine import sampling
from fastvlm.engine.sampling import Sampler, StepSampler, filter_logits, gumbel_noise
from fastvlm.engine.types import SamplingParams

VOCAB = 50


def logits_of(seed, size=VOCAB, spread=3.0):
    return spread * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def transformers_filter(logits, params, seen):
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if not params.is_greedy:
        steps.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            steps.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            steps.append(TopPLogitsWarper(params.top_p))
        if params.min_p:
            steps.append(MinPLogitsWarper(params.min_p))
    return steps(torch.tensor([seen]), logits[None].clone())[0]


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, VOCAB, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
)


@given(params_strategy, st.integers(0, 10_000), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
def test_filters_equal_those_of_transformers(params, seed, seen):
    logits = logits_of(seed)
    before = logits.clone()
    ours = filter_logits(logits, params, torch.tensor(sorted(set(seen))))
    torch.testing.assert_close(ours, transformers_filter(logits, params, seen), rtol=1e-6, atol=0)
    assert torch.equal(logits, before), "the model's logits were changed"


@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.9, 0.999])
def test_top_p_over_a_large_vocabulary_equals_that_of_transformers(top_p):
    """Flat enough that the tokens sorted first do not hold `top_p`, and steep enough that they do."""
    for spread in (0.1, 1.0, 6.0):
        logits = logits_of(1, size=3 * sampling._SORTED_FIRST[-1], spread=spread)
        params = SamplingParams(temperature=1.0, top_p=top_p)
        ours, theirs = filter_logits(logits, params), transformers_filter(logits, params, [0])
        # Cumulative sums in the other direction: the token on the border may fall on either side.
        assert (ours.isfinite() != theirs.isfinite()).sum() <= 2
        both = ours.isfinite() & theirs.isfinite()
        assert torch.equal(ours[both], theirs[both])


def sample_tokens(logits, samplers):
    """The token of each row of `logits`, by its own sampler."""
    step = StepSampler(logits)
    return [step.pick(row, sampler) for row, sampler in enumerate(samplers)]


def test_a_plain_sampler_takes_the_likeliest():
    logits = torch.stack([logits_of(seed) for seed in range(4)])
    picked = sample_tokens(logits, [Sampler(SamplingParams(), []) for _ in range(4)])
    assert [one.token_id for one in picked] == logits.argmax(-1).tolist()
    assert all(one.logprobs is None for one in picked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_tokens_the_first_is_taken(dtype):
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [3.0, 3.0, -1.0, 0.0]], dtype=dtype)
    samplers = [Sampler(SamplingParams(), []) for _ in range(2)]
    assert [one.token_id for one in sample_tokens(logits, samplers)] == [1, 0] == logits.argmax(-1).tolist()


def draw(seed, steps=20, beside=0):
    """Tokens that a sampler draws while `beside` others draw from other rows."""
    mine = Sampler(SamplingParams(temperature=1.0, seed=seed), [])
    others = [Sampler(SamplingParams(temperature=1.0, seed=seed + n), []) for n in range(beside)]
    tokens = []
    for step in range(steps):
        rows = torch.stack([logits_of(step), *(logits_of(100 + n) for n in range(beside))])
        tokens.append(sample_tokens(rows, [mine, *others])[0].token_id)
    return tokens


def test_draws_depend_on_the_seed_alone():
    alone = draw(7)
    assert draw(7, beside=3) == alone
    assert draw(8) != alone
    torch.manual_seed(5)
    torch.rand(100)
    assert draw(7) == alone


def test_without_a_seed_draws_differ():
    def tokens():
        sampler = Sampler(SamplingParams(temperature=1.0), [])
        return [sampler.pick(logits_of(step)).token_id for step in range(20)]

    assert tokens() != tokens()


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), [])
    counts = torch.bincount(torch.tensor([sampler.pick(logits).token_id for _ in range(4000)]), minlength=4)
    torch.testing.assert_close(counts / 4000, logits.softmax(-1), rtol=0, atol=0.03)


def test_noise_is_gumbels():
    noise = gumbel_noise(torch.empty(200_000), torch.Generator().manual_seed(1))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.02)


def test_the_ends_of_the_uniform_numbers_do_not_break_the_draw(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 1 - 2.0**-24, 0.5, 0.5]))
    noise = gumbel_noise(torch.empty(4), None)
    assert noise[0] == -torch.inf and 16 < noise[1] < 17, "the one never wins, the other is finite"


def test_tokens_that_are_ruled_out_are_never_drawn():
    sampler = Sampler(SamplingParams(temperature=100.0, top_k=3, seed=1), [])
    logits = logits_of(2)
    allowed = set(logits.topk(3).indices.tolist())
    assert {sampler.pick(logits).token_id for _ in range(200)} == allowed


def test_picked_tokens_are_penalized_from_then_on():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [3])
    logits = torch.tensor([0.0, 1.0, 1.9, 1.8])
    assert [sampler.pick(logits).token_id for _ in range(3)] == [2, 1, 2], "2 counts 0.95 once picked, 3 0.9 at once"


@pytest.mark.parametrize("count", [0, 3, 20])
def test_logprobs_are_the_models_own(count):
    logits = logits_of(5)
    picked = Sampler(SamplingParams(temperature=2.0, top_k=2, seed=1, logprobs=count), []).pick(logits)
    expected = logits.log_softmax(-1)
    assert picked.logprobs.token == pytest.approx(float(expected[picked.token_id]))
    assert len(picked.logprobs.top) == count
    best = sorted(expected.tolist(), reverse=True)[:count]
    assert [value for _, value in picked.logprobs.top] == pytest.approx(best)
    assert all(value == pytest.approx(float(expected[token])) for token, value in picked.logprobs.top)


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = logits_of(9).bfloat16()
    params = SamplingParams(temperature=0.8, seed=4, logprobs=1)
    assert Sampler(params, []).pick(logits) == Sampler(params, []).pick(logits.float())


class Only:
    """Lets only some tokens come, and notes those that came."""

    def __init__(self, *token_ids):
        self.token_ids, self.taken = list(token_ids), []

    def allowed_mask(self):
        allowed = torch.zeros(VOCAB, dtype=torch.bool)
        allowed[self.token_ids] = True
        return allowed

    def accept(self, token_id):
        self.taken.append(token_id)

    def forced_tokens(self):
        return []


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.5, top_k=3, seed=1)])
def test_a_guide_rules_tokens_out_before_any_filter(params):
    guide = Only(7, 9)
    logits = logits_of(2)
    before = logits.clone()
    sampler = Sampler(params, [], guide=guide)
    assert not sampler.is_plain
    picked = [sampler.pick(logits).token_id for _ in range(5)]
    assert set(picked) <= {7, 9} and guide.taken == picked
    assert torch.equal(logits, before)


def test_logprobs_beside_a_guide_are_the_models_own():
    logits = logits_of(3)
    picked = Sampler(SamplingParams(logprobs=2), [], guide=Only(4)).pick(logits)
    assert picked.token_id == 4
    assert picked.logprobs.token == pytest.approx(float(logits.log_softmax(-1)[4]))


def test_guided_and_plain_requests_are_picked_side_by_side():
    logits = torch.stack([logits_of(1), logits_of(1)])
    picked = sample_tokens(logits, [Sampler(SamplingParams(), []), Sampler(SamplingParams(), [], guide=Only(0))])
    assert [one.token_id for one in picked] == [int(logits[0].argmax()), 0]
