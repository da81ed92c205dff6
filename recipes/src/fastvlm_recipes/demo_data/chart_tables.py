"""The numbers and names that bar charts show."""

from __future__ import annotations

from random import Random

from fastvlm_recipes.demo_data import words
from fastvlm_recipes.demo_data.fonts import Split

LABEL_SETS: tuple[tuple[str, ...], ...] = (
    ("A", "B", "C", "D", "E"),
    ("A", "B", "C", "D", "E"),
    ("X", "Y", "Z"),
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    ("Q1", "Q2", "Q3", "Q4"),
    ("2019", "2020", "2021", "2022", "2023", "2024", "2025"),
    ("US", "UK", "FR", "DE", "JP", "IT", "ES"),
    ("red", "blue", "green", "pink"),
)
TITLES: tuple[str, ...] = (
    "Sales", "Votes", "Price", "Score", "Visits", "Hours", "Orders", "Costs", "People", "Goals", "Points", "Weight",
)  # fmt: skip
LARGEST_NUMBERS = (5, 10, 20, 50, 100)
LEAST_GAP = 0.12  # least distance between the largest two and the smallest two bars, as a share of the largest


def make_labels(rng: Random, split: Split, count: int) -> tuple[str, ...]:
    """`count` different names of bars: letters, days, months, years, or any short words."""
    roll = rng.random()
    if roll < 0.55:
        names = rng.choice([names for names in LABEL_SETS if len(names) >= count])
        start = rng.randint(0, len(names) - count)
        return names[start : start + count]
    if roll < 0.7:
        return tuple(rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", count))
    longest = {2: 5, 3: 4}.get(count, 3)
    found: list[str] = []
    while len(found) < count:
        is_held_out = split == "test" and rng.random() < 0.5
        word = words.held_out(rng, 3, longest) if is_held_out else words.longer(rng, rng.randint(2, longest))
        if word.isalpha() and word.casefold() not in [one.casefold() for one in found]:
            found.append(word)
    return tuple(found)


def make_title(rng: Random, split: Split) -> str:
    """A word, or "" for none."""
    roll = rng.random()
    if roll < 0.4:
        return ""
    if roll < 0.75:
        return rng.choice(TITLES)
    return words.held_out(rng, 4, 8) if split == "test" else words.longer(rng, rng.randint(4, 8))


def make_values(rng: Random, count: int) -> tuple[int, ...]:
    """`count` numbers above 0, all different, of which the largest and the smallest stand out."""
    most = rng.choice([number for number in LARGEST_NUMBERS if number > count])
    while True:
        values = [rng.randint(1, most) for _ in range(count)]
        ordered = sorted(values)
        gaps = (ordered[-1] - ordered[-2], ordered[1] - ordered[0])
        if len(set(values)) == count and min(gaps) >= LEAST_GAP * ordered[-1] and ordered[-1] > most // 2:
            return tuple(values)
