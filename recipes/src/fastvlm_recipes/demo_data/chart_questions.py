"""Questions about bar charts: largest, smallest, values, how many, title, colors, comparisons."""

from __future__ import annotations

from random import Random

from fastvlm_recipes.demo_data.scene import Chart
from fastvlm_recipes.demo_data.wording import Turn, any_of, it_is

LARGEST = (
    "Which bar is the largest?", "Which bar is the highest?", "What is the largest bar?", "Which bar is the longest?",
    "What has the largest value?", "Which one is the largest?",
)  # fmt: skip
SMALLEST = (
    "Which bar is the smallest?", "Which bar is the lowest?", "What is the smallest bar?", "Which bar is the shortest?",
    "What has the smallest value?", "Which one is the smallest?",
)  # fmt: skip
VALUE_OF = ("What is the value of {}?", "How much is {}?", "What is the number of {}?", "Read the value of {}.")
HOW_MANY_BARS = ("How many bars are there?", "How many bars do you see?", "Count the bars.", "How many bars are shown?")
TITLE = ("What is the title?", "What is the title of the chart?", "Read the title.", "What is the chart called?")
COLOR_OF_BAR = ("What color is the bar {}?", "What color is the bar of {}?", "Which color is the bar {}?")
LARGEST_VALUE = ("What is the largest value?", "What is the largest number?", "What is the highest value?")
COMPARE = ("Is {} larger than {}?", "Is {} more than {}?", "Is the bar {} larger than {}?")
LABELS = ("Read the labels.", "What are the labels?", "What are the bars called?")
SEE = ("What do you see?", "What is this?", "What is in the image?", "Describe the image.")


def largest(chart: Chart) -> str:
    """The largest bar's label."""
    return chart.labels[chart.values.index(max(chart.values))]


def smallest(chart: Chart) -> str:
    """The smallest bar's label."""
    return chart.labels[chart.values.index(min(chart.values))]


def chart_turns(rng: Random, chart: Chart) -> list[Turn]:
    """Largest, smallest and number of bars, a value where values are written, and two other questions."""
    turns = [
        (any_of(rng, LARGEST), largest(chart)),
        (any_of(rng, SMALLEST), smallest(chart)),
        (any_of(rng, HOW_MANY_BARS), str(len(chart.labels))),
    ]
    first, second = rng.sample(range(len(chart.labels)), 2)
    is_larger = chart.values[first] > chart.values[second]
    asked = any_of(rng, COMPARE).format(chart.labels[first], chart.labels[second])
    extra: list[Turn] = [
        (asked, "Yes" if is_larger else "No"),
        (any_of(rng, LABELS), "\n".join(chart.labels)),
        (any_of(rng, SEE), "A bar chart."),
    ]
    if chart.has_values:
        turns.append((any_of(rng, VALUE_OF).format(chart.labels[first]), str(chart.values[first])))
        extra.append((any_of(rng, LARGEST_VALUE), str(max(chart.values))))
    if chart.title:
        turns.append((any_of(rng, TITLE), chart.title))
    else:
        extra.append((any_of(rng, TITLE), "There is no title in the image."))
    if len(set(chart.colors)) > 1:
        question = any_of(rng, COLOR_OF_BAR).format(chart.labels[first])
        extra.append((question, it_is(chart.colors[first])))
    return [*turns, *rng.sample(extra, 2)]
