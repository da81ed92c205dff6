"""Whole runs on a tiny checkpoint: they learn, they go on to the same numbers, what they write opens elsewhere."""

import json
import signal
import sys

import pytest
import small_run
import torch
from small_run import lines, stop_at, train, weights

import fastvlm
from fastvlm.errors import DataError, UsageError
from fastvlm.training.run import training_run
from fastvlm.training.run.curves import draw_curves
from fastvlm.training.run.model_card import TestScore
from fastvlm.training.run.training_run import TrainingRun


@pytest.fixture(scope="module")
def model(small_model):
    return small_model


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


@pytest.fixture(scope="module")
def straight(model, data, tmp_path_factory):
    """Eight steps in one go."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return train(small_run.recipe(model, data), folder)


def test_a_run_learns_and_tells(straight):
    log = lines(straight.folder)
    assert [line["step"] for line in log] == list(range(1, 9))
    assert log[-1]["loss"] < log[0]["loss"] - 0.2
    assert straight.step == straight.num_steps == 8 and straight.signal is None
    assert straight.loss == log[-1]["loss"]
    assert set(log[0]["lr"]) == {"encoder", "projector", "decoder"}


def test_without_matplotlib_a_run_says_so_once_and_ends(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "draw_curves", draw_curves)
    recipe, curves = small_run.recipe(model, data, max_steps=1), tmp_path / "run" / "curves.svg"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.warns(UserWarning, match=r"no curves\.svg.*'fastvlm\[plots\]'") as warned:
            outcome = train(recipe, tmp_path / "run")
    assert len(warned) == 1 and outcome.model is not None and not curves.exists()
    train(recipe, tmp_path / "run", is_resumed=True)
    assert "<svg" in curves.read_text()


def test_warm_up_rises_and_the_cosine_falls_to_nothing(model, data, tmp_path):
    recipe = small_run.recipe(model, data, warmup_ratio=0.25, max_steps=12)
    rates = [line["lr"]["decoder"] for line in lines(train(recipe, tmp_path / "run").folder)]
    assert rates[0] == 0 and rates[3] == pytest.approx(1e-2) == max(rates)
    assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] < 0.05 * max(rates)


def test_stopped_and_gone_on_with_is_the_same_to_the_last_bit(straight, model, data, tmp_path):
    recipe = small_run.recipe(model, data)
    for step in (1, 4):
        stopped = train(recipe, tmp_path / "run", is_resumed=step > 1, on_progress=stop_at(step))
        assert (stopped.signal, stopped.step, stopped.model) == (signal.SIGTERM, step, None)
        assert stopped.checkpoint == tmp_path / "run" / f"checkpoint-{step}"
    gone_on = train(recipe, tmp_path / "run", is_resumed=True)
    assert lines(gone_on.folder) == lines(straight.folder)
    expected = weights(straight.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(gone_on.model).items())


def test_the_log_s_mean_does_not_notice_an_interruption(model, data, tmp_path):
    # A line averages three steps; the run is stopped within them, in its second epoch, with several micro-batches.
    recipe = small_run.recipe(
        model, data, log_every=3, micro_batch_size=2, max_steps=9, ema=0.9, eval={"fraction": 0.2, "every": 6}
    )
    train(recipe, tmp_path / "straight")
    assert train(recipe, tmp_path / "run", on_progress=stop_at(8)).step == 8
    gone_on = train(recipe, tmp_path / "run", is_resumed=True)
    assert lines(gone_on.folder) == lines(tmp_path / "straight")
    expected = weights(tmp_path / "straight" / "model")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(gone_on.model).items())


def test_a_run_that_had_made_its_steps_writes_its_folder_when_gone_on_with(model, data, tmp_path):
    recipe = small_run.recipe(model, data, max_steps=3)
    stopped = train(recipe, tmp_path / "run", on_progress=stop_at(3))
    assert stopped.step == 3 and stopped.model is None
    done = train(recipe, tmp_path / "run", is_resumed=True)
    assert done.step == 3 and done.model.is_dir() and len(lines(done.folder)) == 3


def test_ctrl_c_stops_like_sigterm(model, data, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # Python's own, or ignored, if the tests run in a shell's background
    stopped = train(small_run.recipe(model, data), tmp_path / "run", on_progress=stop_at(2, signal.SIGINT))
    assert stopped.signal == signal.SIGINT and stopped.checkpoint.name == "checkpoint-2"
    assert signal.getsignal(signal.SIGINT) is before, "the handlers are put back"


def test_the_last_two_checkpoints_stay(model, data, tmp_path):
    outcome = train(small_run.recipe(model, data, max_steps=3, save_every_steps=1), tmp_path / "run")
    assert sorted(path.name for path in outcome.folder.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-3"]
    assert not list(outcome.folder.glob(".*"))


def test_the_final_folder_is_fast_vlm_and_opens_in_transformers(straight, model):
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration

    theirs, info = FastVlmForConditionalGeneration.from_pretrained(straight.model, output_loading_info=True)
    assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ours, processor = fastvlm.load(straight.model, device="cpu")
    assert processor.padding_side == "left"
    own, before = ours.state_dict(), weights(model)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in own.items() if "timm" not in name)
    assert {name for name, tensor in own.items() if torch.equal(tensor, before[name])} == {
        name for name in own if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }, "everything has learned, and the statistics of the BatchNorms have not moved"
    card = (straight.model / "README.md").read_text()
    assert "samples.json" in card and "8 steps of 4 samples" in card and "max_steps: 8" in card
    files = {path.name for path in straight.model.iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"} <= files


def test_frozen_parts_stay_and_so_do_their_statistics(model, data, tmp_path):
    parts = {"encoder": "frozen", "projector": 1e-3, "decoder": {"lr": "frozen"}}
    outcome = train(small_run.recipe(model, data, parts=parts, max_steps=2), tmp_path / "run")
    before = weights(model)
    changed = {name for name, tensor in weights(outcome.model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


def test_from_scratch_trains_the_branches_and_ships_them_fused(model, data, tmp_path):
    parts = {**small_run.RATES, "encoder": {"lr": 1e-3, "batchnorm": "train"}}
    outcome = train(small_run.recipe(model, data, parts=parts, from_scratch=True, max_steps=4), tmp_path / "run")
    assert lines(outcome.folder)[-1]["loss"] < lines(outcome.folder)[0]["loss"]
    branches = torch.load(outcome.checkpoint / "optimizer.pt", weights_only=True)
    assert len(branches["state"]) > len(weights(outcome.model)), "the branches have learned, one by one"
    config = json.loads((outcome.model / "config.json").read_text())
    assert config["vision_config"]["model_args"]["inference_mode"] is True
    assert any("reparam_conv" in name for name in weights(outcome.model))
    assert "trained from random weights" in (outcome.model / "README.md").read_text()


def test_images_of_another_size_are_what_the_folder_then_says(model, data, tmp_path):
    recipe = small_run.recipe(model, data, image_size=[64, 128], max_steps=1, gradient_checkpointing=True)
    _, processor = fastvlm.load(train(recipe, tmp_path / "run").model, device="cpu")
    assert processor.image_processor.image_size == (64, 128)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["image_seq_length"] == 2


def test_a_folder_with_a_run_is_not_written_over(straight, model, data):
    with pytest.raises(UsageError, match="--resume continues it"):
        train(small_run.recipe(model, data), straight.folder)
    with pytest.raises(UsageError, match="batch_size: 4, and now it is 8"):
        train(small_run.recipe(model, data, batch_size=8), straight.folder, is_resumed=True)


def test_a_sample_that_cannot_be_read_stops_the_run_by_its_name(model, tmp_path):
    file = small_run.samples(tmp_path / "data", 6)
    (file.parent / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"samples.json.*3\.png") as raised:
        train(small_run.recipe(model, file, workers=1), tmp_path / "run")
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


def test_tests_are_asked_of_whole_folders_and_a_failure_leaves_them(model, data, tmp_path):
    recipe = small_run.recipe(model, data, max_steps=1, tests=[{"suite": "mini"}])
    with pytest.raises(UsageError, match="pass measure="):
        TrainingRun(recipe, tmp_path / "run")

    def fail(folder):
        assert weights(folder)
        raise DataError("an image is gone")

    with pytest.raises(DataError, match="an image is gone"):
        TrainingRun(recipe, tmp_path / "run", measure=fail).train()
    assert "exact match" not in (tmp_path / "run" / "model" / "README.md").read_text()
    score = TestScore("colors", 9, "exact match", 1.0, (0.7, 1.0))
    done = TrainingRun(recipe, tmp_path / "run", measure=lambda folder: [score]).train(is_resumed=True)
    assert "| colors | 9 | exact match | 100.0% | 70.0% to 100.0% | - |" in (done.model / "README.md").read_text()
    assert weights(done.model)


def test_processes_must_share_a_batch(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="3 processes of micro_batch_size 4 cannot share evenly"):
        TrainingRun(small_run.recipe(model, data), tmp_path)
