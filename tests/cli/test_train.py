"""The verb: what it lists, checks, refuses and prints. Runs themselves are tests/training's."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `import small_run`

import small_run

from fastvlm.cli import train_lines
from fastvlm.cli.train_lines import ProgressLines
from fastvlm.cli.train_options import read_settings
from fastvlm.errors import UsageError
from fastvlm.training.run.callbacks import Progress


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_run.checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.samples(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(autouse=True)
def no_lines(monkeypatch):
    """However long a run takes here, it says nothing; tests of the lines set this otherwise."""
    monkeypatch.setattr(train_lines, "EVERY_S", math.inf)


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
def test_a_run_prints_its_folder_and_an_adapter_can_be_asked(fastvlm, written, tmp_path, image, model):
    done = fastvlm("train", written, "--out", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{tmp_path / 'run' / 'model'}\n"
    assert fastvlm("ask", image, "What is shown?", "-m", done.out.strip(), "-n", "3").code == 0
    lora = ("--set", "lora.r=2", "--set", "parts.projector=frozen", "--max-steps", "1")
    done = fastvlm("train", written, "--out", tmp_path / "lora", *lora, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["model"] is None and facts["step"] == facts["num_steps"] == 1
    asked = fastvlm("ask", image, "What is shown?", "-m", model, "--adapter", facts["adapter"], "-n", "3")
    assert asked.code == 0, asked.err
    chatted = fastvlm("chat", image, "-m", model, "--adapter", facts["adapter"], "-n", "3", stdin=b"What is shown?")
    assert (chatted.code, chatted.out, chatted.err) == (0, asked.out, "")
    for verb in ("ask", "chat"):
        plain = [image, *(["What?"] if verb == "ask" else []), "-m", model]
        refused = fastvlm(verb, *plain, "--adapter", tmp_path)
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


def test_adapters_are_checked_without_a_download(fastvlm, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(small_run.record([], "What?", "red")) + "\n")
    done = fastvlm("train", "lora", "--check", "--data", tmp_path / "mine.jsonl")
    assert (done.code, done.err) == (0, ""), done.err
    refused = fastvlm("train", "qlora", "--check", "--data", tmp_path / "mine.jsonl", "-m", tmp_path / "no-model")
    assert refused.code == 1 and "no-model" in refused.error and "-m mini checks records and images" in refused.error


class Clock:
    """Says what it is told to."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_into_a_file_there_is_a_line_every_half_minute(capsys, monkeypatch):
    monkeypatch.setattr(train_lines, "EVERY_S", 30.0)
    clock = Clock()
    lines = ProgressLines("training", clock)
    said = []
    for step in range(1, 121):
        clock.now_s += 1
        lines.report(Progress(step, 120, None if step < 60 else 0.5, 0.0 if step < 60 else 8.0, 8.0))
        said += [(step, line) for line in capsys.readouterr().err.splitlines()]
    assert said == [
        (30, "fastvlm: training: step 30 of 120, 0:01:30 left"),
        (60, "fastvlm: training: step 60 of 120, loss 0.500, 8.0 images/s, 0:01:00 left"),
        (90, "fastvlm: training: step 90 of 120, loss 0.500, 8.0 images/s, 0:00:30 left"),
        (120, "fastvlm: training: step 120 of 120, loss 0.500, 8.0 images/s, 0:00:00 left"),
    ]
    clock.now_s += 3600
    ProgressLines("reading", lambda: 0.0).count(1, 2)
    late = ProgressLines("reading", clock)
    clock.now_s += 31
    late.count(256, 1000)
    assert capsys.readouterr().err == "fastvlm: reading: sample 256 of 1000\n"


def test_the_lines_of_a_run_are_on_stderr_unless_it_is_quiet(fastvlm, written, tmp_path, monkeypatch):
    monkeypatch.setattr(train_lines, "EVERY_S", 0.0)
    done = fastvlm("train", written, "--out", tmp_path / "run")
    first, second = done.err.splitlines()
    assert done.code == 0 and first == "fastvlm: training: step 1 of 2"
    assert second.startswith("fastvlm: training: step 2 of 2, loss ") and second.endswith(" left")
    checked = fastvlm("train", written, "--check")
    assert checked.err == "fastvlm: reading: sample 11 of 11\n"
    assert fastvlm("train", written, "--check", "--quiet").err == ""


def test_a_column_may_be_ignored(fastvlm, written, tmp_path):
    record = {**small_run.record([], "What?", "red"), "score": 3}
    (tmp_path / "more.jsonl").write_text(json.dumps(record) + "\n")
    more = ("--check", "--data", tmp_path / "more.jsonl")
    done = fastvlm("train", written, *more)
    assert done.code == 1 and "it has 'score', which would not be read" in done.out
    assert fastvlm("train", written, *more, "--ignore", "score").code == 0


@pytest.mark.filterwarnings("default:The samples of data:UserWarning")
def test_changed_data_is_refused(fastvlm, model, tmp_path):
    data = small_run.samples(tmp_path / "data", 4)
    recipe, run = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text(small_run.recipe(model, data, max_steps=1).to_yaml())
    assert fastvlm("train", recipe, "--out", run).code == 0
    data.write_text(json.dumps(json.loads(data.read_text())[:4]))
    refused = fastvlm("train", recipe, "--out", run, "--resume")
    assert refused.code == 2 and "9 samples before, 4 now" in refused.error
    done = fastvlm("train", recipe, "--out", run, "--resume", "--allow-changed-data")
    assert done.code == 0 and done.err.startswith("fastvlm: warning: The samples of data are not those")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name a recipe"),
        (("lorra",), "Did you mean 'lora'?"),
        (("mini",), "give --data"),
        (("mini", "--check"), "give --data"),
        (("mini", "--images-in", "x"), "give --data too"),
        (("mini", "--ignore", "x"), "give --data too"),
        (("mini", "--allow-changed-data"), "give --resume too"),
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
    assert done.code == 2 and "--resume continues it" in done.error


def test_settings_are_read_as_yaml():
    settings = read_settings(["a.b=1e-5", "c=[1, 2]", "d=frozen", "e=true", "f=null"])
    assert settings == {"a.b": 1e-5, "c": [1, 2], "d": "frozen", "e": True, "f": None}
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(["a=["])


# Tests that a recipe names.

EXAMPLES = Path(__file__).parents[2] / "examples"
ASKED = [  # the last answer is not what the mini says
    {"image": "red_star.png", "question": "What shape is this?", "answers": ["star"], "test": "shape"},
    {"image": "red_star.png", "question": "What color is the star?", "answers": ["red"], "test": "colour"},
    {"image": "red_star.png", "question": "What color is the star?", "answers": ["mauve"], "test": "colour"},
]


@pytest.fixture
def questions(tmp_path):
    """A file of them, with images that are elsewhere."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in ASKED))
    return file


def recipe_tests(questions, **changes):
    """As `--set` takes it."""
    return json.dumps([{"task": "plain", "data": str(questions), "images": str(EXAMPLES), **changes}])


def table_of(card):
    """Test -> the cells after its name."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows if len(cells) == 6}


def percentages(cells):
    """The numbers before the percent signs."""
    return [float(number) for cell in cells for number in re.findall(r"([\d.]+)%", cell)]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
def test_the_cards_have_the_scores_that_eval_gives(fastvlm, written, questions, tmp_path):
    still = [f"parts.{part}=frozen" for part in ("encoder", "projector")] + ["parts.decoder=1e-9", "max_steps=1"]
    mini = ["model=mini", "max_tokens=256", "lora.r=2", "lora.merge=true", f"tests={recipe_tests(questions)}", *still]
    done = fastvlm("train", written, "--out", tmp_path / "run", *(word for one in mini for word in ("--set", one)))
    assert (done.code, done.err) == (0, ""), done.err
    asked = fastvlm(
        "eval", "--task", "plain", "--data", questions, "--images", EXAMPLES, "-m", done.out.strip(), "--json"
    )
    assert asked.code == 0, asked.err
    found = json.loads(asked.out)
    assert found["scores"] == {"shape": 1.0, "colour": 0.5}
    for kind in ("model", "adapter"):
        table = table_of((tmp_path / "run" / kind / "README.md").read_text())
        for test, score in found["scores"].items():
            n, metric, *shares = table[test]
            expected = (score, *found["intervals"][test], found["majority"][test])
            assert (n, metric) == (str(found["n"][test]), "exact match")
            assert percentages(shares) == pytest.approx([100 * share for share in expected], abs=0.06)
        assert not list((tmp_path / "run" / kind).glob(".*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "plane"}, "tests.0 of the recipe: --task is 'plane'"),
        ({"data": "none.jsonl"}, "none.jsonl does not exist"),
        ({"images": "/nowhere"}, "/nowhere does not exist"),
        ({"suite": "mini"}, "either --suite mini, or --task"),
        ({"metrics": "exact"}, "unknown key 'tests.0.metrics'; did you mean 'metric'?"),
        ({"limit": 0}, "tests.0.limit"),
    ],
)
def test_wrong_tests_are_told_before_anything_is_trained(fastvlm, written, questions, change, words):
    done = fastvlm("train", written, "--set", f"tests={recipe_tests(questions, **change)}")
    assert done.code == 2 and words in done.error


def test_questions_that_cannot_be_asked_are_told_before_too(fastvlm, written, questions):
    questions.write_text(
        questions.read_text() + json.dumps({"image": "none.png", "question": "?", "answers": "x"}) + "\n"
    )
    done = fastvlm("train", written, "--set", f"tests={recipe_tests(questions)}")
    assert done.code == 1 and "1 records cannot be asked" in done.error and "none.png" in done.error
    questions.write_text("")
    done = fastvlm("train", written, "--set", f"tests={recipe_tests(questions)}")
    assert done.code != 0 and "questions" in done.error
