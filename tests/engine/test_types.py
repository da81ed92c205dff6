"""Requests are checked where they are made: what was got, what was expected."""

import dataclasses
import math
import subprocess
import sys

import pytest

from fastvlm.engine.types import Completion, SamplingParams, Timings, TokenEvent, Usage
from fastvlm.errors import UsageError

WRONG = [
    ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number from 1"),
    ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
    ({"max_new_tokens": True}, "max_new_tokens is True"),
    ({"temperature": -1.0}, "temperature is -1.0; expected 0, or 0.01 to 100"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": 1e-9}, "temperature is 1e-09"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"top_p": math.nan}, "top_p is nan"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"min_p": 1.5}, "min_p is 1.5"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**63}, "seed is 9223372036854775808"),
    ({"stop": [""]}, "non-empty strings"),
    ({"stop": ["x", 3]}, "non-empty strings"),
    ({"stop": ["x"] * 17}, "at most 16 strings"),
    ({"logprobs": -1}, "logprobs is -1"),
    ({"logprobs": 21}, "logprobs is 21; expected 0 to 20"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_values_out_of_range_are_named(settings, words):
    with pytest.raises(UsageError) as caught:
        SamplingParams(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.01, "top_k": 1, "top_p": 1e-9, "min_p": 1.0, "repetition_penalty": 0.5},
        {"temperature": 100.0, "seed": 0, "logprobs": 0},
        {"seed": 2**63 - 1, "logprobs": 20, "stop": ["x"] * 16},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(settings):
    assert not SamplingParams(**settings).is_greedy or settings.get("temperature", 0) == 0


def test_one_stop_string_needs_no_list():
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop=("a",)))


def test_the_likeliest_token_is_the_default():
    assert SamplingParams().is_greedy
    assert not SamplingParams(temperature=0.5).is_greedy


def test_records_are_frozen():
    records = (SamplingParams(), Usage(1, 0, 1), TokenEvent(1, 2), Timings(0, 0, 0, 0, None, 0))
    for record in records:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, 0)
    assert {field.name for field in dataclasses.fields(Completion)} >= {"text", "token_ids", "usage", "timings"}


def test_records_load_no_torch():
    code = "import fastvlm.engine.types, fastvlm.engine.scheduler, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
