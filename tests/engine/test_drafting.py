"""Drafts make replies faster and leave each of them as it is: tokens, text, log probabilities, usage, cache."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import engines
import pytest
import tiny
import torch
from engine_fixtures import Letters
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvlm.engine.drafting import DraftCounts, Drafter, PromptLookup
from fastvlm.engine.structured_output import GrammarCompiler
from fastvlm.engine.types import MOST_LOOKED_UP, SamplingParams
from fastvlm.errors import NonFiniteError, UsageError
from fastvlm.opening import open_engine

LETTERS = st.lists(st.integers(0, 3), max_size=30)

# ------------------------------------------------------------------------------------------------ prompt lookup


def found(token_ids, most):
    """The draft by a search of all places."""
    for size in (4, 3, 2):
        for start in range(len(token_ids) - size - 1, -1, -1):
            if token_ids[start : start + size] == token_ids[-size:]:
                drafted = list(token_ids)
                while len(drafted) < len(token_ids) + most:
                    drafted.append(drafted[start + size + len(drafted) - len(token_ids)])
                return drafted[len(token_ids) :]
    return []


@given(LETTERS, st.lists(LETTERS, max_size=4), st.integers(1, 9))
def test_a_draft_is_what_followed_the_longest_ngram_where_it_came_last(prompt, pieces, most):
    lookup, reply = PromptLookup(prompt, 2 * most), []
    for piece in pieces:
        reply += piece
        assert lookup.draft(reply) == found([*prompt, *reply], most)


def test_forced_tokens_are_looked_up_too():
    assert PromptLookup([1, 2, 3, 4, 5, 6], 4).draft([9], [2, 3]) == [4, 5]
    assert PromptLookup([], 6).draft([7], [8, 7, 8]) == [], "the forced tokens themselves are not searched"
    assert PromptLookup([5, 6, 7], 8).draft([], [5, 6]) == [7, 5, 6, 7]


def test_drafts_grow_while_they_hold_and_shrink_when_they_do_not():
    lookup = PromptLookup([1, 2] * 20, 16)
    lengths = []
    for accepted in (8, 16, 4, 5, 3):
        lengths.append(len(lookup.draft([])))
        lookup.verified(lengths[-1], min(accepted, lengths[-1]))
    assert lengths == [8, 16, 16, 5, 10]
    assert len(lookup.draft([])) == 4


def test_after_drafts_that_do_not_hold_there_are_pauses():
    lookup = PromptLookup([1, 2] * 20, 4)
    steps = []
    for _ in range(130):
        drafted = lookup.draft([])
        steps.append(bool(drafted))
        if drafted:
            lookup.verified(len(drafted), 0)
    places = [place for place, is_drafted in enumerate(steps) if is_drafted]
    assert [after - before for before, after in pairwise(places)] == [2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("num_tokens", [0, -1, MOST_LOOKED_UP + 1, True, 2.5, "4"])
def test_other_numbers_of_tokens_are_refused(make_engine, num_tokens):
    with pytest.raises(UsageError, match=r"^prompt_lookup_num_tokens is .*; expected 1 to 64 tokens, or None"):
        make_engine(prompt_lookup_num_tokens=num_tokens)


# ------------------------------------------------------------------------------------------------ replies


@pytest.fixture(scope="module")
def both():
    """An engine without lookup and one with it, on the same tiny model; their caches live on from reply to reply."""
    model = tiny.model(text={"max_position_embeddings": 160})
    usual = {"num_slots": 3, "admission_ratio": math.inf}
    return [engines.engine(model, Letters(), prompt_lookup_num_tokens=number, **usual) for number in (None, 6)]


PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0, 0, 0.2, 0.5]),
    seed=st.integers(0, 9),
    top_k=st.sampled_from([0, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.1]),
    logprobs=st.sampled_from([None, None, 2]),
    stop=st.lists(st.text([chr(0x4E00 + token) for token in range(2, 100)], min_size=1, max_size=2), max_size=3),
    stop_token_ids=st.lists(st.integers(2, 99), max_size=2),
    ignore_eos=st.booleans(),
)
PROMPTS = st.tuples(st.sampled_from(["t", "ttt", "itt", "tttttttttttt"]), st.integers(0, 3))


def replies(engine, requests, drain):
    """The completions of `requests`, submitted together."""
    submitted = []
    for (layout, seed), params in requests:
        inputs = {"input_ids": [tiny.prompt(layout, seed=seed)]}
        if "i" in layout:
            inputs["pixel_values"] = tiny.images(1, seed=seed)
        submitted.append(engine.submit(inputs, params))
    tokens, last = drain(engine)
    completions = [last[request].completion for request in submitted]
    assert [completion.token_ids for completion in completions] == [tokens[request] for request in submitted]
    return completions


def assert_equal(ours, theirs):
    assert ours.token_ids == theirs.token_ids
    parts = ("text", "finish_reason", "stop_string")
    assert [getattr(ours, part) for part in parts] == [getattr(theirs, part) for part in parts]
    usages = [replace(reply.usage, cached_prompt_tokens=0) for reply in (ours, theirs)]
    assert usages[0] == usages[1], "what is cached depends on the time at which others end"
    for mine, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
        assert mine.token == pytest.approx(other.token, abs=1e-3)
        assert [token for token, _ in mine.top] == [token for token, _ in other.top]


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=5))
def test_replies_with_and_without_lookup_are_equal(both, drain_once, requests):
    without, with_lookup = (replies(engine, requests, drain_once) for engine in both)
    for ours, theirs in zip(with_lookup, without, strict=True):
        assert_equal(ours, theirs)


@pytest.fixture(scope="module")
def drain_once():
    def run(engine):
        tokens, last = {}, {}
        while engine.has_work:
            for event in engine.step():
                assert event.request_id not in last, "an event after the last one"
                tokens.setdefault(event.request_id, []).extend([] if event.token_id is None else [event.token_id])
                if event.finish_reason is not None:
                    last[event.request_id] = event
        return {request: tuple(ids) for request, ids in tokens.items()}, last

    return run


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=3), choices=st.integers(0, 2**32))
def test_any_draft_leaves_the_reply_as_it_is(both, drain_once, requests, choices):
    """Drafts that are right for a while and wrong from anywhere on."""
    engine = both[0]
    engine.forget()
    expected = replies(engine, requests, drain_once)
    engine.forget()
    spare, choose = iter(range(len(requests))), random.Random(choices)

    class Guessing(Drafter):
        def __init__(self):
            super().__init__([], None, None, DraftCounts())
            self.right = expected[next(spare)].token_ids

        def draft(self, reply_ids, most):
            right = self.right[len(reply_ids) : len(reply_ids) + choose.randint(0, 4)]
            return [*right, *choose.choices(range(2, 100), k=choose.randint(0, 2))][:most]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastvlm.engine.engine.drafter", lambda *_: Guessing())
        for ours, theirs in zip(replies(engine, requests, drain_once), expected, strict=True):
            assert_equal(ours, theirs)


def test_a_reply_that_repeats_itself_takes_few_steps(both, drain):
    """Tiny models say the same again and again."""
    engine, before = both[1], vars(both[1].draft_counts).copy()
    engine.submit({"input_ids": [tiny.prompt("ttt")]}, SamplingParams(max_new_tokens=80, ignore_eos=True))
    num_steps = 0
    while engine.has_work:
        engine.step()
        num_steps += 1
    counts = engine.draft_counts
    accepted, drafted = counts.accepted - before["accepted"], counts.drafted - before["drafted"]
    assert num_steps + accepted == 80, "each step gives a token, and those that were accepted"
    assert accepted > 25 and accepted <= drafted and counts.forced == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_goes_on_where_rejected_tokens_were(both, seed):
    """The slot's prefix is reused up to the newest token; what was rejected after it does not show."""
    for engine in both:
        engine.forget()
    ids, counts = tiny.prompt("tttttt", seed=seed), both[1].draft_counts
    rejected = counts.drafted - counts.accepted
    for limit in (17, 24, 9, 30):
        params = SamplingParams(max_new_tokens=limit, ignore_eos=True)
        theirs, ours = (engine.generate({"input_ids": [ids]}, params) for engine in both)
        assert_equal(ours, theirs)
        assert ours.usage == theirs.usage
        ids = [*ids, *ours.token_ids, *tiny.prompt("ttt", seed=limit)]
    assert counts.drafted - counts.accepted > rejected


def test_nan_after_an_accepted_token_ends_the_reply_there(make_engine, question, monkeypatch):
    """NaN where a drafted token was wrong is no error; where it was right, it is one."""
    rows, poisoned = [], set()

    def make_linear(weight, bias):
        def product(x):
            out = torch.nn.functional.linear(x, weight, bias)
            if len(weight) == tiny.VOCAB:
                for row in poisoned:
                    out[row] = math.nan
                rows.append(len(out))
            return out

        return product

    engine = make_engine(make_linear=make_linear)
    usual = engine.generate(question("tt").inputs, SamplingParams(max_new_tokens=8)).token_ids
    for drafted, is_error in ((usual[1:3], True), ([usual[1] + 1], False)):
        counts = DraftCounts()
        drafter = Drafter([], None, None, counts)
        drafter.draft = lambda reply_ids, most, drafted=drafted: list(drafted) if len(reply_ids) == 1 else []
        monkeypatch.setattr("fastvlm.engine.engine.drafter", lambda *_, drafter=drafter: drafter)
        request = engine.submit(question("tt").inputs, SamplingParams(max_new_tokens=8))
        events = engine.step()
        poisoned.add(1)
        events += engine.step()
        poisoned.clear()
        while engine.has_work:
            events += engine.step()
        assert isinstance(events[-1].error, NonFiniteError) == is_error
        expected = usual[:2] if is_error else usual
        assert events[-1].completion.token_ids == expected and events[-1].request_id == request


# ------------------------------------------------------------------------------------------------ schemas


@pytest.fixture(scope="module")
def mini():
    return open_engine("mini", device="cpu", dtype="float32", prompt_lookup_num_tokens=None)


@pytest.fixture(scope="module")
def compile_schema(mini):
    ends = sorted(mini.stop_token_ids)
    return GrammarCompiler(mini.processor.tokenizer, mini.config.text_config.vocab_size, ends).compile


class Unforced:
    """A guide that does not say which tokens it forces."""

    def __init__(self, guide):
        self.allowed_mask, self.accept = guide.allowed_mask, guide.accept

    def forced_tokens(self):
        return []


class CountedBackend:
    """A backend that notes how many rows each of its decoding steps has."""

    def __init__(self, backend):
        self._backend, self.rows = backend, []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def decode(self, token_ids, slots, positions):
        self.rows.append(len(token_ids))
        return self._backend.decode(token_ids, slots, positions)


def ask(engine, text, params, guide):
    """The reply's completion, and the number of rows of each decoding step."""
    engine.forget()
    backend = engine.backend
    engine.backend = counted = CountedBackend(backend)
    try:
        request = engine.submit([{"role": "user", "content": text}], params, guide=guide)
        while engine.has_work:
            for event in engine.step():
                if event.request_id == request and event.completion is not None:
                    return event.completion, counted.rows
    finally:
        engine.backend = backend


ANSWER = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "star"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 9},
        "is_visible": {"type": "boolean"},
    },
    "required": ["shape", "number", "is_visible"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.7, seed=3, logprobs=1)], ids=str)
def test_tokens_that_a_schema_forces_take_no_steps_of_their_own(mini, compile_schema, params):
    guide = compile_schema(ANSWER)
    slow, one_by_one = ask(mini, "What is it?", params, Unforced(guide.copy()))
    before = mini.draft_counts.forced
    fast, rows = ask(mini, "What is it?", params, guide.copy())
    assert_equal(fast, slow)
    assert set(one_by_one) == {1} and len(one_by_one) == len(fast.token_ids) - 1
    num_forced = mini.draft_counts.forced - before
    assert len(rows) == len(fast.token_ids) - 1 - num_forced
    assert len(rows) <= 9 and num_forced >= 30, "one step for each choice and for the end"


def test_a_schema_with_one_document_takes_two_steps(mini, compile_schema):
    guide = compile_schema({"const": "always this"})
    reply, rows = ask(mini, "What is it?", SamplingParams(), guide)
    assert reply.text == '"always this"' and reply.finish_reason == "stop"
    assert len(rows) == 1, "the first token follows the prompt, the others and the end one step"


def test_a_forced_text_may_be_longer_than_a_step_or_the_reply(mini, compile_schema):
    text = "0123456789" * 12
    for limit in (256, 70, 40, 2, 1):
        params = SamplingParams(max_new_tokens=limit)
        slow, _ = ask(mini, "Say it.", params, Unforced(compile_schema({"const": text})))
        fast, rows = ask(mini, "Say it.", params, compile_schema({"const": text}))
        assert_equal(fast, slow)
        assert all(count <= 33 for count in rows)


SCHEMAS = st.recursive(
    st.sampled_from([
        {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": "string", "maxLength": 5},
        {"enum": ["red", "redder", "blue", 7]}, {"const": "a \"quoted\" text"}, {"type": "string", "pattern": "^ab*c$"},
    ]),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["name", "names", "number", "é"]), inner, min_size=1, max_size=3).map(
            lambda fields: {
                "type": "object", "properties": fields, "required": sorted(fields)[:1], "additionalProperties": False,
            }
        ),
        inner.map(lambda item: {"type": "array", "items": item, "maxItems": 2}),
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.integers(1, 60), st.sampled_from([0, 0, 0.8]), st.integers(0, 99), st.booleans())
def test_replies_with_a_schema_are_as_token_by_token(mini, compile_schema, schema, limit, temperature, seed, looks_up):
    guide = compile_schema(schema)
    params = SamplingParams(max_new_tokens=limit, temperature=temperature, seed=seed)
    slow, _ = ask(mini, "Name 'ab' and 'red redder'.", params, Unforced(guide.copy()))
    mini.prompt_lookup_num_tokens = 8 if looks_up else None
    try:
        fast, _ = ask(mini, "Name 'ab' and 'red redder'.", params, guide.copy())
    finally:
        mini.prompt_lookup_num_tokens = None
    assert_equal(fast, slow)
