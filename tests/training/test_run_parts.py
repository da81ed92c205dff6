"""The smaller parts of a run: mixtures, averages, curves, cards, the folder."""

import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_files import openai

from fastvlm.errors import DataError, TrainingError, UsageError
from fastvlm.training.data.recipe_data import split_off
from fastvlm.training.data.samples import Samples
from fastvlm.training.recipe import Recipe, read_recipe
from fastvlm.training.run.curves import curves_of, draw_curves, smoothed
from fastvlm.training.run.ema import WeightAverage
from fastvlm.training.run.interruption import Interruption
from fastvlm.training.run.model_card import RunFacts, TestScore, model_card
from fastvlm.training.run.run_folder import RunFolder

# Several sources.


class Source:
    folder = Path()

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def origin(self, index):
        return f"{self.name}:{index}"

    def record(self, index):
        return openai("Hi", "Ho")


def samples(name, count):
    return Samples([(Source(name, count), ())])


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0.05, 3.2)), min_size=1, max_size=4), st.integers(0, 9))
def test_each_source_is_seen_as_often_as_asked(sources, seed):
    joined = Samples.joined([(samples(i, n), repeat) for i, (n, repeat) in enumerate(sources)], seed)
    seen = [joined.origin(index) for index in range(len(joined))]
    for i, (count, repeat) in enumerate(sources):
        times = [seen.count(f"{i}:{k}") for k in range(count)]
        assert sum(times) == int(repeat) * count + round((repeat - int(repeat)) * count)
        assert all(int(repeat) <= t <= int(repeat) + 1 for t in times)


def test_joined_samples_are_a_sequence():
    joined = Samples.joined([(samples("a", 4).chosen([3, 1, 2]), 1), (samples("b", 2), 2)])
    assert [joined.origin(index) for index in range(7)] == ["a:3", "a:1", "a:2", "b:0", "b:1", "b:0", "b:1"]
    assert joined[-1].origin == "b:1" and [sample.origin for sample in joined[1:4]] == ["a:1", "a:2", "b:0"]
    with pytest.raises(IndexError):
        joined[7]


class Rows:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index

    def lengths(self, workers=0):
        return [10 * index for index in range(self.count)]


@given(st.integers(2, 50), st.floats(0.01, 0.99), st.integers(0, 5))
def test_what_is_put_aside_is_not_learnt(count, fraction, seed):
    learned, aside = split_off(Rows(count), fraction, seed)
    first, second = set(learned), set(aside)
    assert first and second and not first & second and first | second == set(range(count))
    assert learned.lengths() == [10 * learned[i] for i in range(len(learned))]


def test_one_sample_cannot_be_both():
    with pytest.raises(DataError, match="two samples or more"):
        split_off(Rows(1), 0.5, 0)


# Averages.


def test_the_average_follows_the_weights_and_steps_aside(tmp_path):
    model = nn.Linear(2, 2)
    start = model.weight.detach().clone()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight += 1
    average.update(100)  # late enough for the decay itself
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), start + 0.5)
    torch.testing.assert_close(model.weight.detach(), start + 1)
    average.save(tmp_path)
    again = WeightAverage(model, 0.5)
    again.load(tmp_path)
    assert torch.equal(again.averages["weight"], average.averages["weight"])


def test_early_steps_forget_the_start():
    model = nn.Linear(2, 2)
    start = model.weight.detach().clone()
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        model.weight += 11
    average.update(1)
    torch.testing.assert_close(average.averages["weight"], start + 11 * (1 - 2 / 11))


def test_a_checkpoint_without_average_is_told(tmp_path):
    with pytest.raises(TrainingError, match="begin without ema"):
        WeightAverage(nn.Linear(2, 2), 0.9).load(tmp_path)


# Curves and cards.

LOG = [
    {"step": 1, "loss": 2.0, "grad_norm": 3.0, "lr": {"encoder": 1e-5, "decoder": 1e-4}, "images_per_s": 9.0},
    {"step": 2, "eval_loss": 1.5},
    {"step": 3, "loss": 1.0, "grad_norm": 2.0, "lr": {"encoder": 0.0, "decoder": 0.0}, "images_per_s": 10.0},
]


def test_curves_are_those_of_the_log(tmp_path):
    curves = curves_of(LOG)
    assert curves["loss"]["each log line"] == [(1, 2.0), (3, 1.0)]
    assert curves["loss"]["held-out samples"] == [(2, 1.5)]
    assert curves["learning rate"]["decoder"] == [(1, 1e-4), (3, 0.0)]
    draw_curves(LOG, tmp_path / "curves.svg", "a <name> & $more")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"a <name> & $more", "gradient norm", "images per second"} <= set(texts)


@pytest.mark.parametrize("log", [[], LOG[:1], [{"step": 1, "loss": 0.0}]])
def test_short_logs_can_be_drawn(log, tmp_path):
    draw_curves(log, tmp_path / "curves.svg", "short")
    ElementTree.parse(tmp_path / "curves.svg")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e3, 1e3)), min_size=1, max_size=200))
def test_a_smoothed_curve_stays_within_its_values(points):
    smooth = [value for _, value in smoothed(points)]
    assert min(v for _, v in points) - 1e-6 <= min(smooth) and max(smooth) <= max(v for _, v in points) + 1e-6


def facts(**changes):
    return RunFacts(**{"num_samples": 200, "num_parameters": 1000, "num_trained": 250, "num_steps": 7, "log": LOG,
                       "tool": "fastvlm 1 at abc", "machine": "1 x CPU", **changes})  # fmt: skip


def test_a_card_tells_data_recipe_commit_and_losses():
    recipe = read_recipe("lora", {"data": ["folder/mine.json"], "model": "owner/base"})
    scores = [
        TestScore("signs", 40, "exact match", 0.5, (0.352, 0.648), 0.25),
        TestScore("captions", 7, "CIDEr", 1.2345, is_share=False),
    ]
    text = model_card(recipe, facts(scores=scores), is_adapter=True)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "owner/base" and front["library_name"] == "peft"
    for words in ("`mine.json`", "200 samples", "7 steps of 16", "25.0%", "fastvlm 1 at abc", "2.000 at first",
                  "held-out samples: 1.500", "| signs | 40 | exact match | 50.0% | 35.2% to 64.8% | 25.0% |",
                  "| captions | 7 | CIDEr | 1.234 | - | - |",
                  "| decoder | adapters | 0.0002 |", "| encoder | nothing | - |",
                  "research only"):  # fmt: skip
        assert words in text, words
    assert Recipe.model_validate(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])) == recipe
    assert "Nothing was measured" in model_card(recipe, facts(log=[]))


# The folder.


def checkpoint(files, step):
    folder = files.scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(str(step))
    return files.adopt(folder.name)


def test_checkpoints_are_whole_or_not_there(tmp_path):
    files = RunFolder(tmp_path)
    with pytest.raises(UsageError, match="Is a directory"), files.saving() as work:  # noqa: PT012
        written = work / "checkpoint-1"
        written.mkdir(parents=True)
        written.write_text("a folder cannot be written to")
    assert files.last_good() is None and not list(tmp_path.iterdir())
    for step in (9, 10, 100):
        checkpoint(files, step)
    assert [path.name for path in files.checkpoints()] == ["checkpoint-10", "checkpoint-100"]


def test_what_a_kill_left_is_removed_and_the_log_is_cut(tmp_path):
    files = RunFolder(tmp_path)
    checkpoint(files, 2)
    (files.scratch / "checkpoint-3").mkdir(parents=True)
    files.log.write_text('{"step": 1, "pictures_per_s": 9.5}\n{"step": 2}\n{"step": 3}\n{"step"')
    recipe = Recipe()
    assert files.claim(recipe, is_resumed=True).name == "checkpoint-2"
    assert not files.scratch.exists()
    assert files.read_log() == [{"step": 1, "images_per_s": 9.5}, {"step": 2}]  # 0.1 said pictures
    assert Recipe.model_validate(yaml.safe_load(files.recipe.read_text())) == recipe


def test_another_run_s_folder_is_refused_by_the_key_that_differs(tmp_path):
    files = RunFolder(tmp_path / "run")
    files.folder.mkdir()
    files.log.write_text('{"step": 1}\n')  # killed before the first checkpoint: it begins again
    assert files.claim(Recipe(), is_resumed=True) is None
    assert files.read_log() == []
    checkpoint(files, 1)
    files.claim(Recipe(workers=7, name="other"), is_resumed=True)  # what changes nothing may change
    with pytest.raises(UsageError, match="seed: 0, and now it is 3"):
        files.claim(Recipe(seed=3), is_resumed=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").claim(Recipe(), is_resumed=False)


def test_a_signal_outside_of_steps_ends_the_process_at_once():
    import os

    with Interruption().listening(), pytest.raises(SystemExit) as raised:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)
    assert raised.value.code == 143
    interruption = Interruption()
    with interruption.listening(), interruption.waiting_for_step():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
