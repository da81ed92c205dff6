"""Receipts say what their record says; layouts that are held out never come in training."""

import json
import re
from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.receipt_layouts import HELD_OUT_LAYOUTS, LAYOUTS, SEEN_LAYOUTS
from fastvlm_recipes.demo_data.receipt_questions import AS_JSON, json_turn, receipt_turns
from fastvlm_recipes.demo_data.receipts import GOODS, as_written, draw_receipt, make_date
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS

AMOUNT = re.compile(r"[$€£]?(\d+)\.(\d\d)")


def hundredths(text):
    whole, rest = AMOUNT.fullmatch(text).groups()
    return 100 * int(whole) + int(rest)


def written(scene):
    """Every text of the image, a total in one run with its word taken apart."""
    texts = Counter()
    for line in scene.lines:
        texts.update([line.text, *line.text.split(" ")])
    return texts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_that_the_record_says_is_written(layout):
    for seed in range(12):
        scene = draw_receipt(Random(seed), "train", layout)
        receipt, texts = scene.receipt, written(scene)
        assert receipt.layout == layout
        assert {receipt.shop, receipt.date, receipt.total} <= set(texts)
        for name, price in receipt.items:
            assert texts[name] and texts[price]


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "test"]))
def test_a_total_is_the_sum_of_its_items(seed, split):
    receipt = draw_receipt(Random(seed), split).receipt
    assert hundredths(receipt.total) == sum(hundredths(price) for _, price in receipt.items)
    names = [name.casefold() for name, _ in receipt.items]
    assert 1 <= len(names) == len(set(names)) <= 3


@given(seed=st.integers(0, 2**32))
def test_training_sees_no_held_out_layout_and_no_held_out_word(seed):
    receipt = draw_receipt(Random(seed), "train").receipt
    assert receipt.layout in SEEN_LAYOUTS
    assert not {word.casefold() for word in (receipt.shop, *(name for name, _ in receipt.items))} & HELD_OUT_WORDS
    assert draw_receipt(Random(seed), "test").receipt.layout in HELD_OUT_LAYOUTS


def test_the_layouts_are_different_and_complete():
    assert len(set(LAYOUTS.values())) == len(LAYOUTS) == len(SEEN_LAYOUTS) + len(HELD_OUT_LAYOUTS)
    for layout in LAYOUTS.values():
        assert {row.part for row in layout} >= {"shop", "date", "items", "total"}
    assert not set(GOODS) & HELD_OUT_WORDS


@pytest.mark.parametrize("split", ["train", "test"])
def test_letters_are_large_enough_and_lie_in_the_image(split):
    for seed in range(40):
        scene = draw_receipt(Random(seed), split)
        assert all(line.height >= 7 for line in scene.lines)
        assert np.median([line.height for line in scene.lines]) >= 11
        assert all(0 <= thing.x <= SIZE and 0 <= thing.y <= SIZE for thing in scene.things)


def test_the_same_chance_draws_the_same_receipt():
    first, again = draw_receipt(Random(5), "train"), draw_receipt(Random(5), "train")
    assert first.receipt == again.receipt and first.image.tobytes() == again.image.tobytes()
    assert draw_receipt(Random(6), "train").receipt != first.receipt


def test_rows_do_not_lie_on_each_other():
    for seed in range(30):
        scene = draw_receipt(Random(seed), "train")
        middles = sorted((line.y, line.height) for line in scene.lines)
        for (above, height), (below, other) in pairwise(middles):
            is_same_row = below - above < 6
            assert is_same_row or below - above > 0.4 * (height + other)


@given(seed=st.integers(0, 2**32))
def test_answers_are_true_of_the_receipt(seed):
    rng = Random(seed)
    receipt = draw_receipt(rng, "train").receipt
    prices = {name.casefold(): price for name, price in receipt.items}
    for question, answer in receipt_turns(rng, receipt):
        asked = question.lower()
        if asked.startswith(("what costs", "which item costs")):
            assert prices[answer.casefold()] in question
        elif "json" in asked:
            assert json.loads(answer)
        elif any(f"the {name}" in asked for name in prices) and (
            "cost" in asked or "much" in asked or "price" in asked
        ):
            assert answer in prices.values()
        elif "total" in asked or "sum" in asked or "paid" in asked:
            assert answer == receipt.total
        elif "date" in asked or "when" in asked:
            assert answer == receipt.date
        elif "how many" in asked:
            assert answer == str(len(receipt.items))


@given(seed=st.integers(0, 2**32))
def test_the_json_has_what_is_asked_for_and_nothing_else(seed):
    rng = Random(seed)
    receipt = draw_receipt(rng, "train").receipt
    question, answer = json_turn(rng, receipt)
    content = json.loads(answer)
    assert any(question.startswith(wording.split("{")[0]) for wording in AS_JSON)
    assert content == {key: getattr(receipt, key) for key in content}
    assert all(key in question for key in content) and "total" in content


@pytest.mark.parametrize(("number", "sign", "text"), [(1250, "", "12.50"), (5, "$", "$0.05"), (100, "€", "€1.00")])
def test_amounts_are_written_with_two_digits(number, sign, text):
    assert as_written(number, sign) == text


@given(st.integers(0, 10_000))
def test_dates_fit_a_row(seed):
    date = make_date(Random(seed))
    assert 6 <= len(date) <= 11 and date[0].isdigit() and date[-2:].isdigit()
