"""The verb: what it lists, checks, refuses and prints. Runs themselves are tests/training's."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `import small_run`

import small_run

from fastvlm.cli.train_options import read_settings
from fastvlm.errors import UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_run.checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.samples(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture
def written(tmp_path, model, data):
    """A recipe's file."""
    file = tmp_path / "mine.yaml"
    file.write_text(small_run.recipe(model, data, max_steps=2).to_yaml())
    return file


def test_recipes_are_listed(fastvlm):
    lines = fastvlm("train", "--recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert any(line.startswith("align ") and "projector alone" in line for line in lines)
    listed = json.loads(fastvlm("train", "--recipes", "--json").out)
    assert Path(listed["lora"]["file"]).is_file()


# transformers 5.23 renames gradient to activation checkpointing; peft asks by the old name.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
def test_a_run_prints_its_folder_and_an_adapter_can_be_asked(fastvlm, written, tmp_path, picture, model):
    done = fastvlm("train", written, "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{tmp_path / 'run' / 'model'}\n"
    assert fastvlm("ask", picture, "What is shown?", "-m", done.out.strip(), "-n", "3").code == 0
    lora = ("--set", "lora.r=2", "--set", "parts.projector=frozen", "--max-steps", "1")
    done = fastvlm("train", written, "--out", tmp_path / "lora", *lora, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["model"] is None and facts["step"] == facts["num_steps"] == 1
    asked = fastvlm("ask", picture, "What is shown?", "-m", model, "--adapter", facts["adapter"], "-n", "3")
    assert asked.code == 0, asked.err
    refused = fastvlm("ask", picture, "What?", "-m", model, "--adapter", tmp_path)
    assert refused.code == 1 and "has no adapter_config.json" in refused.error


def test_check_shows_samples_and_trains_nothing(fastvlm, written, workplace):
    done = fastvlm("train", written, "--check")
    assert done.code == 0, done.err
    assert "11 samples: 11 good" in done.out and "[[" in done.out
    assert json.loads(fastvlm("train", written, "--check", "--json").out)["num_samples"] == 11


def test_check_fails_for_bad_samples(fastvlm, written, tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(small_run.record(["none.png"], "<image>\nWhat?", "red")) + "\n")
    done = fastvlm("train", written, "--check", "--data", tmp_path / "bad.jsonl")
    assert done.code == 1 and "none.png" in done.out
    assert "1 of 1 samples cannot be used" in done.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name a recipe"),
        (("lorra",), "Did you mean 'lora'?"),
        (("mini",), "give --data"),
        (("mini", "--check"), "give --data"),
        (("mini", "--pictures-in", "x"), "give --data too"),
        (("mini", "--set", "batch_size"), "expected KEY=VALUE"),
        (("mini", "--set", "bach_size=3"), "did you mean 'batch_size'"),
        (("mini", "--data", "nowhere.json"), "nowhere.json"),
        (("mini", "--max-steps", "0"), "max_steps"),
    ],
)
def test_bad_use_is_one_line(fastvlm, workplace, arguments, words):
    done = fastvlm("train", *arguments)
    assert done.code == 2 and words in done.error


def test_an_earlier_run_is_not_written_over(fastvlm, written, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    done = fastvlm("train", written, "--out", tmp_path / "run")
    assert done.code == 2 and "--resume goes on with it" in done.error


def test_settings_are_read_as_yaml():
    settings = read_settings(["a.b=1e-5", "c=[1, 2]", "d=frozen", "e=true", "f=null"])
    assert settings == {"a.b": 1e-5, "c": [1, 2], "d": "frozen", "e": True, "f": None}
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(["a=["])
