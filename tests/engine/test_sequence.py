"""One reply while it is made: what ends it, and what its stopwatch says."""

import pytest

from fastvlm.engine.prompt_inputs import PromptInputs
from fastvlm.engine.sampling import SampledToken, Sampler
from fastvlm.engine.sequence import SequenceState
from fastvlm.engine.types import SamplingParams, TokenLogprobs, Usage

WORDS = {1: " one", 2: " two", 3: "\n", 9: ""}
PROMPT = PromptInputs((5, 6, 7), preprocess_ms=4.0)


class Clock:
    """Seconds, as set."""

    now = 100.0

    def __call__(self):
        return self.now


def reply(clock=None, **params):
    settings = SamplingParams(max_new_tokens=params.pop("max_new_tokens", 5), **params)
    return SequenceState(
        7, PROMPT, settings, Sampler(settings, PROMPT.token_ids),
        decode=lambda ids: "".join(WORDS[i] for i in ids), stop_ids={9}, clock=clock or Clock(),
    )  # fmt: skip


def test_tokens_become_events():
    made = reply()
    made.admitted(2, 1)
    events = [made.append(SampledToken(token)) for token in (1, 2, 9)]
    assert [(e.request_id, e.token_id, e.text, e.finish_reason) for e in events] == [
        (7, 1, "one", None), (7, 2, " two", None), (7, 9, "", "stop"),
    ]  # fmt: skip
    done = events[-1].completion
    assert (done.text, done.token_ids, done.usage) == ("one two", (1, 2, 9), Usage(3, 0, 3, 1))
    assert made.slot == 2


def test_the_newest_token_stands_behind_the_prompt_and_the_others():
    made = reply()
    for place, token in enumerate((1, 2)):
        made.append(SampledToken(token))
        assert (made.last_token, made.position) == (token, 3 + place)


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        ({"max_new_tokens": 2}, (1, 2), "length"),
        ({"max_new_tokens": 2}, (1, 9), "stop"),
        ({"stop": "o\n"}, (1, 2, 3), "stop"),
        ({"stop": "two", "max_new_tokens": 2}, (1, 2), "stop"),
    ],
)
def test_what_ends_it(params, tokens, reason):
    made = reply(**params)
    reasons = [made.append(SampledToken(token)).finish_reason for token in tokens]
    assert reasons == [None] * (len(tokens) - 1) + [reason]


def test_the_stopwatch():
    clock = Clock()
    made = reply(clock)
    for now, note in ((101, lambda: made.admitted(0, 0)), (102, made.encoding), (104, made.encoded)):
        clock.now = now
        note()
    clock.now = 107.0
    assert made.append(SampledToken(3)).text == "", "white space is no text"
    clock.now = 108.0
    made.append(SampledToken(1))
    clock.now = 110.0
    done = made.append(SampledToken(9)).completion
    times = done.timings
    assert (times.preprocess, times.wait, times.encode, times.prefill) == (4.0, 1000.0, 2000.0, 3000.0)
    assert (times.ttft, times.total) == (4.0 + 8000.0, 4.0 + 10_000.0)
    assert done.tokens_per_second == pytest.approx(2 / 3)


def test_broken_off_it_keeps_what_was_said():
    made = reply(stop=" two three")
    made.append(SampledToken(1))
    assert made.append(SampledToken(2)).text == "", "held back"
    event = made.aborted()
    assert (event.token_id, event.text, event.finish_reason, event.error) == (None, " two", "cancelled", None)
    assert (event.completion.text, event.completion.token_ids) == ("one two", (1, 2))


def test_broken_off_by_an_error_before_any_token():
    error = MemoryError("too much")
    event = reply().aborted(error)
    assert event.error is error and event.finish_reason == event.completion.finish_reason == "error"
    assert event.completion.timings.ttft is None and event.completion.tokens_per_second is None


def test_logprobs_are_collected_if_asked_for():
    found = TokenLogprobs(-0.5, ((1, -0.5),))
    made = reply(logprobs=1)
    made.append(SampledToken(1, found))
    assert made.append(SampledToken(9, found)).completion.logprobs == (found, found)
    assert reply().aborted().completion.logprobs is None
