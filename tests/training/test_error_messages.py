"""What can befall a run, done to it for real: rates that explode, no memory, no room, a process that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
import torch
import warm_process

from fastvlm.errors import TrainingError
from fastvlm.training.run.error_messages import readable_errors
from fastvlm.training.run.run_folder import RunFolder
from fastvlm.training.run.training_run import TrainingRun


def test_a_loss_that_is_no_number_names_step_rates_and_the_last_good_checkpoint(small_model, small_data, tmp_path):
    rates = {"encoder": "frozen", "projector": "frozen", "decoder": 1e30}
    recipe = small_run.recipe(small_model, small_data, parts=rates, save_every_steps=1)
    with pytest.raises(TrainingError, match=r"In step \d+ the (loss|gradients' norm) is (nan|inf)") as raised:
        TrainingRun(recipe, tmp_path / "run").train()
    last = RunFolder(tmp_path / "run").last_good()
    assert last is not None and str(last) in str(raised.value)
    assert (
        re.search(r"decoder \d.*e\+(29|30)", str(raised.value))
        and "warmup_ratio" in str(raised.value)
        and "warmup_ratio" in str(raised.value)
    )


def test_too_little_memory_says_what_to_lower(small_model, small_data, tmp_path, monkeypatch):
    from fastvlm.training.run.trainer import FastVlmTrainer

    step = FastVlmTrainer.compute_loss

    def hungry(self, *args, **kwargs):
        if self.state.global_step == 2:
            torch.empty(1 << 55)  # torch's allocator itself refuses
        return step(self, *args, **kwargs)

    monkeypatch.setattr(FastVlmTrainer, "compute_loss", hungry)
    with pytest.raises(TrainingError, match=r"too little memory.*checkpoint-2.*micro_batch_size \(now 4") as raised:
        TrainingRun(small_run.recipe(small_model, small_data, save_every_steps=1), tmp_path / "run").train()
    assert "gradient_checkpointing: true" in str(raised.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_every_kind_of_no_memory_is_told_alike(error, small_model, small_data, tmp_path):
    recipe = small_run.recipe(small_model, small_data)
    with (
        pytest.raises(TrainingError, match="there was no checkpoint yet"),
        readable_errors(recipe, RunFolder(tmp_path)),
    ):
        raise error


def test_other_errors_stay_what_they_are(small_model, small_data, tmp_path):
    with (
        pytest.raises(RuntimeError, match="shape"),
        readable_errors(small_run.recipe(small_model, small_data), RunFolder(tmp_path)),
    ):
        raise RuntimeError("shape mismatch")


def command(recipe, folder, *more):
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(recipe.to_yaml())
    return [sys.executable, "-m", "fastvlm", "train", str(file), "--out", str(folder), *more]


def without_progress(err):
    """What a command said, without the lines that a slow machine shows."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("fastvlm: training: "))


def test_a_full_disk_keeps_the_last_good_checkpoint(small_model, small_data, tmp_path):
    recipe = small_run.recipe(small_model, small_data, save_every_steps=2, max_steps=4)
    folder = tmp_path / "run"
    files = RunFolder(folder)
    TrainingRun(recipe, folder, on_progress=lambda p: os.kill(os.getpid(), 15) if p.step == 2 else None).train()
    good = files.last_good()
    before = {file.name: file.read_bytes() for file in good.iterdir()}
    smallest = (good / "model.safetensors").stat().st_size // 2

    # The system refuses to let any file grow beyond this, as it refuses on a full disk.
    no_room = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({smallest}, {smallest}))"
    status, _, err = warm_process.run(command(recipe, folder, "--resume")[3:], dict(os.environ), code=no_room)
    err = without_progress(err)
    assert status == 1, err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert f"{folder} cannot be written: File too large" in err and str(good) in err and "--resume" in err
    assert {file.name: file.read_bytes() for file in good.iterdir()} == before
    assert files.checkpoints() == [good] and not files.scratch.exists()
    assert TrainingRun(recipe, folder).train(is_resumed=True).model is not None


def hear_ctrl_c():
    """A shell starts what it puts in the background, this test run perhaps, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The signal comes in the given step, however fast the machine is; to the whole group, the process that reads images
# among it, as a terminal and a service manager send it.
STOPPED = """
import os, sys
from fastvlm.training.run.callbacks import LogCallback
plain = LogCallback.on_step_end
def step_end(self, args, state, control, **more):
    plain(self, args, state, control, **more)
    if state.global_step == int(sys.argv[2]):
        os.killpg(0, int(sys.argv[1]))
LogCallback.on_step_end = step_end
from fastvlm.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def straight(small_model, small_data, tmp_path_factory):
    """Eight steps in one go."""
    return (
        TrainingRun(long_recipe(small_model, small_data), tmp_path_factory.mktemp("runs") / "straight").train().folder
    )


def long_recipe(model, data):
    return small_run.recipe(model, data, max_steps=8, save_every_steps=3, workers=1)


def test_a_process_that_is_stopped_in_every_way_goes_on_to_the_same_curve(straight, small_model, small_data, tmp_path):
    recipe, folder = long_recipe(small_model, small_data), tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for number, step in ((signal.SIGTERM, 2), (signal.SIGINT, 4), (signal.SIGKILL, 7)):
        process = subprocess.run(
            [sys.executable, "-c", STOPPED, str(int(number)), str(step), *command(recipe, folder, "--resume")[3:]],
            capture_output=True,
            text=True,
            env=environment,
            preexec_fn=hear_ctrl_c,
            start_new_session=True,
            check=False,
            timeout=550,
        )
        err, last = without_progress(process.stderr), RunFolder(folder).last_good().name
        if number == signal.SIGKILL:
            assert (process.returncode, last) == (-number, "checkpoint-6")
        else:
            assert (process.returncode, last) == (128 + number, f"checkpoint-{step}"), err
            assert err.startswith("fastvlm: stopped: by ") and err.count("\n") == 1 and "--resume" in err
    (folder / ".saving" / "checkpoint-39").mkdir(parents=True)  # as if it had been killed while it saved
    TrainingRun(recipe, folder).train(is_resumed=True)
    assert losses(folder) == losses(straight)
    name = "model.safetensors"
    assert (folder / "model" / name).read_bytes() == (straight / "model" / name).read_bytes()
    assert not list(folder.glob(".*"))


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]
