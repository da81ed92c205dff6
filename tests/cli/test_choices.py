"""Options are checked before anything is loaded: what was got, what was expected."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.cli.choices import ModelChoice, Sampling
from fastvlm.config_limits import parse_size
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import UsageError

sides = st.integers(1, 99_999)


@given(sides, sides)
def test_sizes_are_height_first(height, width):
    assert parse_size(f"{height}x{width}") == (height, width)
    assert parse_size(str(height)) == (height, height)
    assert parse_size(f" {height}X{width} ") == (height, width)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_by_name(text):
    try:
        size = parse_size(text)
    except UsageError as error:
        message = str(error)
    else:
        message = "--image-size 768x1024"
        assert size is not None and all(1 <= side <= 99_999 for side in size)
    assert "--image-size" in message and "768x1024" in message


@pytest.mark.parametrize("text", ["", "0", "-512", "5x", "x5", "1e3", "512.0", "512x", "1x2x3", "999999", "٣"])
def test_impossible_sizes(text):
    with pytest.raises(UsageError, match="expected a side in pixels"):
        parse_size(text)


def test_no_size_stays_none():
    assert parse_size(None) is None
    assert ModelChoice("mini").image_size_px is None


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf, 1e-9, 1e9])
def test_impossible_temperatures(temperature):
    with pytest.raises(UsageError, match=r"--temperature is .*expected 0"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"top_p": math.nan}, "--top-p is nan"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**63}, "--seed is 9223372036854775808"),
    ],
)
def test_numbers_out_of_range_are_named(settings, flag):
    with pytest.raises(UsageError, match=flag):
        Sampling(**settings)


def test_every_setting_reaches_the_engine():
    given = {"max_new_tokens": 7, "temperature": 0.7, "top_p": 0.4, "seed": 3}
    assert Sampling(**given).settings() == given
    assert SamplingParams(**Sampling(temperature=0.7).settings()) == SamplingParams(temperature=0.7), "all tokens"


def test_top_p_without_temperature_is_idle():
    assert Sampling(top_p=0.9).has_idle_top_p
    assert not Sampling(top_p=0.9, temperature=1.0).has_idle_top_p


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bf16x"}, "--dtype is 'bf16x'; expected one of auto, float32, bfloat16, float16"),
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"image_fit": "square"}, "--image-fit is 'square'; expected one of pad, crop, stretch"),
        ({"device": "gpu"}, "--device is 'gpu'; expected cpu, cuda"),
        ({"device": "cuda:x"}, "--device is 'cuda:x'"),
        ({"image_size": "big"}, "--image-size is 'big'"),
        ({"prompt_lookup": 0}, "--prompt-lookup is 0; expected 1 to 64 tokens"),
    ],
)
def test_unknown_words_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ModelChoice("mini", **settings)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_devices_by_number(device):
    assert ModelChoice("mini", device=device).device == device
