"""The example of fine-tuning: its arithmetic, its drawings, and, slowly, all of it on fewer images and steps."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "circuit_symbols"))

import draw
import measure

from fastvlm.training.recipe import read_recipe

EXAMPLE = Path(measure.__file__).parent


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_differences_are_those_of_pairs(pairs):
    before = {str(i): float(first) for i, (first, _) in enumerate(pairs)}
    after = {str(i): float(second) for i, (_, second) in enumerate(pairs)}
    row, back = measure.compared(before, after), measure.compared(after, before)
    gained, lost = ((f, s) == (False, True) for f, s in pairs), ((f, s) == (True, False) for f, s in pairs)
    gained, lost, n = sum(gained), sum(lost), len(pairs)
    assert row["difference"] == pytest.approx(100 * (gained - lost) / n) == pytest.approx(-back["difference"])
    assert row["difference"] == pytest.approx(row["after"] - row["before"], abs=1e-9)
    variance = (gained + lost - (gained - lost) ** 2 / n) / n  # McNemar's
    assert row["half"] == pytest.approx(196 * math.sqrt(max(variance, 0) / n), abs=1e-6)


def test_only_short_answers_are_asked_for():
    texts = ["<image>\nWhat is it?", "It is red.", "Describe it.", "A red star and a blue one.", "How many?", "2"]
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    assert measure.short_turns({"conversations": turns}) == [("What is it?", "It is red."), ("How many?", "2")]


def test_held_out_symbols_look_like_no_training_image():
    for what, styles in draw.UNSEEN.items():
        assert not set(styles) & set(draw.SEEN[what])
    for name in draw.SYMBOLS:
        first, second = (draw.draw(Random(3), name, draw.SEEN).tobytes() for _ in range(2))
        assert first == second, "the same seed draws the same"
        assert len(draw.draw(Random(3), name, draw.UNSEEN).getcolors(2)) == 2, "ink on paper"


def test_the_recipe_is_valid_and_its_files_are_those_that_the_script_writes(tmp_path):
    recipe = read_recipe(EXAMPLE / "recipe.yaml")
    assert not any(recipe.learns(part) for part in ("encoder", "projector", "decoder")), "adapters alone"
    draw.write(tmp_path / "circuits", 3, 2, seed=0)
    assert (tmp_path / recipe.data[0].path).is_file()
    assert (tmp_path / recipe.tests[0].data / "questions.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)  # minutes alone; on a machine that trains something else much more
def test_adapters_learn_symbols_that_the_mini_has_never_seen(tmp_path):
    sizes = ("--training", "240", "--rehearsal", "80", "--asked", "64", "--held-out", "40")
    # Many small steps: the loss stands still for the first hundred, whatever the batch.
    short = ("max_steps=260", "batch_size=6", "micro_batch_size=6", "parts.decoder=1.0e-3")
    changes = [word for change in short for word in ("--set", change)]
    command = [sys.executable, str(EXAMPLE / "measure.py"), str(tmp_path), *sizes, *changes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "comparison.json").read_text())
    symbols, others = rows["circuit_symbols"], rows["all but the symbols"]
    # By chance one of eight is right: 12.5 %, and of 64 with 95 % at most 20.6 % (Wilson). Before: none.
    assert symbols["n"] == 64 and symbols["before"] < 5
    assert symbols["difference"] - symbols["half"] > 0
    assert others["n"] >= 40 and others["difference"] > -25
    assert f"| circuit_symbols | 64 | {symbols['before']:.1f} | {symbols['after']:.1f} |" in done.stdout
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert re.search(rf"\| circuit_symbols \| 64 \| exact match \| {symbols['after']:.1f}% \|", card)
