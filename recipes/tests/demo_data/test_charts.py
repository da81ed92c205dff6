"""Bars are as long as their numbers say; the held-out style never comes in training."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data import charts
from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.chart_questions import COMPARE, LABELS, TITLE, chart_turns, largest, smallest
from fastvlm_recipes.demo_data.chart_tables import LABEL_SETS, LEAST_GAP, make_labels, make_values
from fastvlm_recipes.demo_data.charts import HELD_OUT_STYLE, SEEN_STYLES, draw_chart
from fastvlm_recipes.demo_data.scene import Chart
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS

TABLE = Chart("Votes", ("A", "B", "C"), (3, 9, 1), ("red", "blue", "red"), True, "flat")


@given(seed=st.integers(0, 2**32), count=st.integers(2, 5))
def test_values_stand_apart(seed, count):
    values = make_values(Random(seed), count)
    ordered = sorted(values)
    assert len(set(values)) == count and ordered[0] >= 1
    assert min(ordered[-1] - ordered[-2], ordered[1] - ordered[0]) >= LEAST_GAP * ordered[-1]


@given(seed=st.integers(0, 2**32), count=st.integers(2, 5))
def test_labels_are_different_and_training_has_no_held_out_word(seed, count):
    labels = make_labels(Random(seed), "train", count)
    assert len(labels) == len({label.casefold() for label in labels}) == count
    assert not {label.casefold() for label in labels} & HELD_OUT_WORDS
    assert len(make_labels(Random(seed), "test", count)) == count


def test_no_set_of_labels_has_a_held_out_word():
    assert not {label.casefold() for names in LABEL_SETS for label in names} & HELD_OUT_WORDS


@given(seed=st.integers(0, 2**32))
def test_training_never_draws_the_held_out_style(seed):
    assert draw_chart(Random(seed), "train").chart.style in SEEN_STYLES
    assert draw_chart(Random(seed), "test").chart.style == HELD_OUT_STYLE not in SEEN_STYLES


@pytest.mark.parametrize("style", [*SEEN_STYLES, HELD_OUT_STYLE])
def test_what_is_painted_is_as_long_as_the_numbers_say(style, monkeypatch):
    boxes = []
    painter = charts.PAINTERS[style]
    monkeypatch.setitem(
        charts.PAINTERS, style, lambda image, box, *inks: (boxes.append(box), painter(image, box, *inks))
    )
    for seed in range(25):
        boxes.clear()
        scene = draw_chart(Random(seed), "train", style)
        pixels = np.asarray(scene.image, np.int16)
        lengths = [max(right - left, 0) for left, _, right, _ in boxes]
        if len({round(box[3], 3) for box in boxes}) == 1:  # they stand on one line
            lengths = [bottom - top for _, top, _, bottom in boxes]
        values = scene.chart.values
        assert np.argsort(lengths).tolist() == np.argsort(values).tolist()
        longest = int(np.argmax(lengths))
        left, top, right, bottom = (round(edge) for edge in boxes[longest])
        assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
        inset, least = (0, 0.05) if style == "hollow" else (4, 0.2)  # a hollow bar is its border
        painted = pixels[top + inset : bottom - inset, left + inset : right - inset].reshape(-1, 3)
        paper = pixels[-1, -1]
        assert (np.abs(painted - paper).max(1) > 30).mean() > least


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "test"]))
def test_labels_title_and_values_are_written(seed, split):
    scene = draw_chart(Random(seed), split)
    texts = [line.text for line in scene.lines]
    assert set(scene.chart.labels) <= set(texts)
    assert scene.chart.title in [*texts, ""]
    if scene.chart.has_values:
        assert {str(value) for value in scene.chart.values} <= set(texts)
    assert all(-2 <= thing.x <= SIZE + 2 and -2 <= thing.y <= SIZE + 2 for thing in scene.things)


def test_the_same_chance_draws_the_same_chart():
    first, again = draw_chart(Random(4), "train"), draw_chart(Random(4), "train")
    assert first.chart == again.chart and first.image.tobytes() == again.image.tobytes()


def test_largest_and_smallest_of_a_table():
    assert (largest(TABLE), smallest(TABLE)) == ("B", "C")


@given(seed=st.integers(0, 2**32))
def test_answers_are_true_of_the_chart(seed):
    rng = Random(seed)
    chart = draw_chart(rng, "train").chart
    number = dict(zip(chart.labels, chart.values, strict=True))
    for question, answer in chart_turns(rng, chart):
        asked = question.lower()
        if asked.startswith(("which bar is the large", "which bar is the high", "what is the largest bar")):
            assert number[answer] == max(chart.values)
        elif asked.startswith(("which bar is the small", "which bar is the low", "what is the smallest bar")):
            assert number[answer] == min(chart.values)
        elif asked.startswith(("how many bars", "count the bars")):
            assert answer == str(len(chart.values))
        elif asked.startswith(("what is the largest num", "what is the largest val", "what is the highest val")):
            assert answer == str(max(chart.values)) and chart.has_values
        elif asked.rstrip("?.") in {wording.lower().rstrip("?.") for wording in TITLE}:
            assert answer == (chart.title or "There is no title in the image.")


def test_comparisons_and_lists_of_a_table():
    said = {question: answer for seed in range(80) for question, answer in chart_turns(Random(seed), TABLE)}
    assert all(said.get(wording.format("B", "A"), "Yes") == "Yes" for wording in COMPARE)
    assert all(said.get(wording.format("A", "B"), "No") == "No" for wording in COMPARE)
    assert any(said.get(wording) == "A\nB\nC" for wording in LABELS)
    assert said["What is the value of C?"] == "1"
    assert said["What color is the bar B?"] == "It is blue."
