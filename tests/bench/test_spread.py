"""Statistics: checked against numpy, and against what must hold for any samples."""

import statistics

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvlm.bench.spread import ratio, summarize

positive = st.floats(1e-6, 1e6)
several = st.lists(positive, min_size=1, max_size=8)
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines that are busy, too


@anywhere
@given(several)
def test_quartiles_are_numpys(samples):
    found = summarize(samples)
    expected = np.percentile(samples, [0, 25, 50, 75, 100])
    (low, high), (lower, upper) = found["range"], found["quartiles"]
    assert [low, lower, found["median"], upper, high] == pytest.approx(list(expected), rel=1e-5)
    assert found["samples"] == pytest.approx(samples, rel=1e-5)


def test_a_single_sample_is_its_own_spread():
    found = summarize([2.5])
    assert found == {"median": 2.5, "quartiles": [2.5, 2.5], "range": [2.5, 2.5], "samples": [2.5]}


def test_six_digits_are_told():
    assert summarize([1 / 3])["median"] == 0.333333
    assert summarize([123456789.0])["median"] == 123457000.0


@anywhere
@given(several, several)
def test_a_ratio_of_durations_is_theirs_over_ours(ours, theirs):
    found = ratio(ours, theirs, is_more_better=False)
    assert found.value == pytest.approx(statistics.median(theirs) / statistics.median(ours))
    by_round = [b / a for a, b in zip(ours, theirs, strict=False)]
    assert (found.lowest, found.highest) == (min(by_round), max(by_round))


@anywhere
@given(several, several)
def test_rates_are_the_other_way_round(ours, theirs):
    rates = ratio(ours, theirs, is_more_better=True)
    assert rates == ratio(theirs, ours, is_more_better=False)


@anywhere
@given(several, st.floats(1.01, 100))
def test_twice_as_fast_is_two(samples, factor):
    found = ratio(samples, [factor * sample for sample in samples], is_more_better=False)
    assert (found.value, found.lowest, found.highest) == pytest.approx((factor,) * 3)
