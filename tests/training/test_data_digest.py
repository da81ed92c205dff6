"""A resumed run detects changed samples."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import small_run
from small_run import stop_at, train
from training_files import gray, llava, openai, png, save_images, write_lines, write_tar

from fastvlm.errors import UsageError
from fastvlm.training.data.digest import row_digest
from fastvlm.training.data.samples import Sample, open_samples
from fastvlm.training.grounding.objects import Grounding, Look
from fastvlm.training.run.training_run import TrainingRun

HI = {"type": "text", "text": "Hi"}


def digests(path, **options):
    return [row_digest(sample) for sample in open_samples([path], **options)]


def test_every_change_of_what_is_taught_changes_a_row(tmp_path):
    records = [
        llava("<image>\nWhat?", "A cat.", image="x.png"),
        llava("<image>\nWhat?", "A cat!", image="x.png"),
        llava("What?\n<image>", "A cat.", image="x.png"),
        llava("<image>\nWhat?", "A cat.", image="y.png"),
        {**llava("<image>\nWhat?", "A cat.", image="x.png"), "system": "Be brief."},
        {**llava("<image>\nWhat?", "A cat.", image="x.png"), "objects": []},
        {**llava("<image>\nWhat?", "A cat.", image="x.png"), "objects": [{"name": "cat", "box": [0, 0, 1, 1]}]},
        openai([{"type": "image", "image": "data:image/png;base64,AA=="}, {**HI}], "Ho"),
        openai([{"type": "image", "image": "data:image/png;base64,BB=="}, {**HI}], "Ho"),
    ]
    found = digests(write_lines(tmp_path / "x.jsonl", *records))
    assert len(set(found)) == len(records)
    assert found == digests(write_lines(tmp_path / "z.jsonl", *({**record, "id": "new"} for record in records)))


def test_a_row_is_the_same_in_every_process(tmp_path):
    """Words are a set, whose order differs from process to process."""
    words = frozenset("abcdefgh")
    sample = Sample([{"role": "user", "content": [HI]}], (b"12",), "x:1", Grounding((), (Look(0, 0, (), words),)))
    code = (
        "from fastvlm.training.data.digest import row_digest\n"
        "from fastvlm.training.grounding.objects import Grounding, Look\n"
        "from fastvlm.training.data.samples import Sample\n"
        f"print(row_digest({sample!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) == row_digest(sample)


def test_images_in_files_are_told_by_their_bytes_or_their_number(tmp_path):
    turns = json.dumps(llava("<image>", "A."))
    first = digests(write_tar(tmp_path / "s.tar", {"x.png": png(1), "x.json": turns}))
    assert digests(write_tar(tmp_path / "s.tar", {"a.cls": "3", "x.png": png(1), "x.json": turns})) == first
    assert digests(write_tar(tmp_path / "s.tar", {"x.png": png(1) + b"0", "x.json": turns})) != first
    both = [Sample([], (image,), "x") for image in (b"12", b"13")]
    assert row_digest(both[0]) != row_digest(both[1])
    assert isinstance(row_digest(Sample([], (gray(1),), "x")), int)


@pytest.fixture
def data(tmp_path):
    return small_run.samples(tmp_path / "data", 12)


@pytest.fixture
def stopped(small_model, data, tmp_path):
    """(recipe, folder) of a run that was stopped after its first step."""
    recipe = small_run.recipe(small_model, data, max_steps=2)
    assert train(recipe, tmp_path / "run", on_progress=stop_at(1)).step == 1
    return recipe, tmp_path / "run"


def test_other_samples_are_refused_and_gone_on_with_if_wanted(stopped, data):
    recipe, folder = stopped
    before = json.loads((folder / "data.json").read_text())
    assert before["data"]["num_samples"] == 17 and list(before) == ["data"]
    data.write_text(json.dumps(json.loads(data.read_text())[:9]))
    with pytest.raises(UsageError, match=r"samples of data are not .* \(17 samples before, 9 now\).*--allow-changed-d"):
        train(recipe, folder, is_resumed=True)
    assert json.loads((folder / "data.json").read_text()) == before
    with pytest.warns(UserWarning, match="17 samples before, 9 now"):
        done = TrainingRun(recipe, folder).train(is_resumed=True, allows_changed_data=True)
    assert done.step == 2 and done.model.is_dir()
    assert json.loads((folder / "data.json").read_text())["data"]["num_samples"] == 9


def test_as_many_others_are_refused_too_and_a_new_path_if_wanted(stopped, data, tmp_path):
    recipe, folder = stopped
    records = json.loads(data.read_text())
    records[5]["conversations"][1]["value"] = "A lie."
    data.write_text(json.dumps(records))
    with pytest.raises(UsageError, match="17 samples before, 17 now"):
        train(recipe, folder, is_resumed=True)
    shutil.copytree(data.parent, tmp_path / "copy")
    moved = small_run.recipe(recipe.model, tmp_path / "copy" / data.name, max_steps=2)
    with pytest.raises(UsageError, match="or --allow-changed-data"):
        train(moved, folder, is_resumed=True)
    with pytest.warns(UserWarning, match="it continues with the new ones"):
        assert TrainingRun(moved, folder).train(is_resumed=True, allows_changed_data=True).step == 2


def test_a_run_of_an_earlier_version_says_so_once(stopped):
    recipe, folder = stopped
    (folder / "data.json").unlink()
    stored = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(stored.replace("  ignore: []\n", ""))  # a key that did not exist
    assert stored != (folder / "recipe.yaml").read_text()
    with pytest.warns(UserWarning, match="did not record its samples"):
        assert train(recipe, folder, is_resumed=True).step == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert train(recipe, folder, is_resumed=True).step == 2


def test_samples_on_which_the_loss_is_measured_are_compared_too(small_model, data, tmp_path):
    aside = small_run.samples(tmp_path / "aside", 2)
    recipe = small_run.recipe(small_model, data, max_steps=2, eval={"data": [str(aside)]})
    train(recipe, tmp_path / "run", on_progress=stop_at(1))
    aside.write_text(json.dumps(json.loads(aside.read_text())[:3]))
    with pytest.raises(UsageError, match=r"samples of eval.data .*7 samples before, 3 now"):
        train(recipe, tmp_path / "run", is_resumed=True)
    (tmp_path / "run" / "data.json").write_text("[")
    with pytest.raises(UsageError, match="Remove it to continue without it"):
        train(recipe, tmp_path / "run", is_resumed=True)


def test_a_run_without_a_checkpoint_begins_with_what_is_there(small_model, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text('{"data": {"num_samples": 1, "digest": "0"}}')
    recipe = small_run.recipe(small_model, data, max_steps=1)
    assert train(recipe, tmp_path / "run", is_resumed=True).step == 1


def test_unused_members_are_told_when_training_starts(small_model, tmp_path):
    save_images(tmp_path, 1)
    members = {"x.json": json.dumps(openai("Hi", "Ho")), "y.json": json.dumps(openai("Hi", "Hu")), "x.cls": "3"}
    shard = write_tar(tmp_path / "s.tar", members)
    recipe = small_run.recipe(small_model, shard, max_steps=1, batch_size=2, micro_batch_size=2)
    with pytest.warns(UserWarning, match=r"1 members of shards are not used .*x\.cls"):
        assert train(recipe, tmp_path / "run").step == 1
