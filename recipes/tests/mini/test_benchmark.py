"""The second edition's tests: the same item for the same number, drawn from what is held out, with true answers."""

from __future__ import annotations

from random import Random

import pytest

from fastvlm_recipes.demo_data.charts import HELD_OUT_STYLE, draw_chart
from fastvlm_recipes.demo_data.receipt_layouts import HELD_OUT_LAYOUTS
from fastvlm_recipes.demo_data.receipts import draw_receipt
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS
from fastvlm_recipes.mini import benchmark
from fastvlm_recipes.mini.benchmark import TESTS, make_items
from fastvlm_recipes.mini.evaluate import ANSWERABLE, READING
from fastvlm_recipes.mini.freeze import COUNTS

DRAWN = ("words_unseen_fonts", "receipt_total_unseen_layouts", "chart_largest", "false_premises", "answerable_twins")


@pytest.mark.parametrize("name", DRAWN)
def test_an_item_follows_from_its_number(name: str) -> None:
    few, more = make_items(name, 3), make_items(name, 5)
    assert [(item.question, item.answers) for item in few] == [(item.question, item.answers) for item in more[:3]]
    assert few[2].image.tobytes() == more[2].image.tobytes() == make_items(name, 1, first=2)[0].image.tobytes()


def test_words_are_held_out_and_of_every_length() -> None:
    said = [item.answers[0].casefold() for item in make_items("words_unseen_fonts", 60)]
    assert set(said) <= HELD_OUT_WORDS
    assert {len(word) for word in said} == {3, 4, 5, 6, 7, 8}


def test_receipts_and_charts_are_of_the_held_out_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def receipt(rng: Random, split: str) -> object:
        scene = draw_receipt(rng, split)
        seen.append(scene.receipt.layout)
        return scene

    def chart(rng: Random, split: str) -> object:
        scene = draw_chart(rng, split)
        seen.append(scene.chart.style)
        return scene

    monkeypatch.setattr(benchmark, "draw_receipt", receipt)
    monkeypatch.setattr(benchmark, "draw_chart", chart)
    totals, bars = make_items("receipt_total_unseen_layouts", 20), make_items("chart_largest", 20)
    assert set(seen) == {*HELD_OUT_LAYOUTS, HELD_OUT_STYLE}
    assert all(item.answers[-1].replace(".", "").isdigit() for item in totals)
    assert all(1 <= len(item.answers[0]) <= 6 for item in bars)


def test_false_premises_are_refused_and_their_twins_are_not() -> None:
    assert all(item.answers[0].startswith("There is no ") for item in make_items("false_premises", 40))
    assert not any(item.answers[0].startswith("There is no ") for item in make_items("answerable_twins", 40))


def test_every_list_of_tests_names_known_ones() -> None:
    assert {*COUNTS, *READING, *ANSWERABLE, *DRAWN} <= set(TESTS)
