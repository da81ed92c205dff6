"""Several processes: the same losses as one with the same batch; weights shared out; accelerate's own files."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import small_run
import torch
import yaml

import fastvlm
from fastvlm.training.run.training_run import TrainingRun

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer,FastViTHDStage",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def in_processes(recipe, folder, *more, launcher=TORCHRUN, timeout_s=550, **settings):
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", *launcher, "-m", "fastvlm", "train", str(file), "--out", str(folder), *more]
    left = ("ACCELERATE", "FSDP", "MASTER", "LOCAL", "RANK", "WORLD")  # what a run in this process has left behind
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **settings}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(folder):
    return [line["loss"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]


def norms(folder):
    return [line["grad_norm"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]


@pytest.fixture(scope="module")
def alone(small_model, small_data, tmp_path_factory):
    """One process, four samples a step, some text alone; not to the epoch's rest, which several processes fill up."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return TrainingRun(small_run.recipe(small_model, small_data, micro_batch_size=2, max_steps=7), folder).train()


@pytest.fixture(scope="module")
def together(small_model, small_data, tmp_path_factory):
    """(recipe, folder, what was printed) of two processes that do the same, with checkpoints after steps 4 and 7."""
    folder = tmp_path_factory.mktemp("runs") / "together"
    recipe = small_run.recipe(small_model, small_data, micro_batch_size=2, max_steps=7, save_every_steps=4)
    return recipe, folder, in_processes(recipe, folder).stdout


def test_two_processes_learn_what_one_learns(alone, together):
    _, folder, printed = together
    assert printed.split() == [str(folder / "model")], "one process speaks"
    assert losses(folder) == pytest.approx(losses(alone.folder), rel=1e-4)
    assert norms(folder) == pytest.approx(norms(alone.folder), rel=1e-2)
    expected = fastvlm.load(alone.model, device="cpu")[0].state_dict()
    found = fastvlm.load(folder / "model", device="cpu")[0].state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-3, rtol=2e-2, msg=name)


@pytest.mark.slow  # three processes start: a minute
def test_two_processes_go_on_together(together, tmp_path):
    recipe, folder, _ = together
    again = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-7", "model"))
    in_processes(recipe, again, "--resume")
    assert losses(again) == losses(folder)


def test_weights_shared_out_by_fsdp2_learn_the_same(alone, small_model, small_data, tmp_path):
    recipe = small_run.recipe(small_model, small_data, micro_batch_size=2, max_steps=7)
    in_processes(recipe, tmp_path / "run", **FSDP2)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone.folder), rel=1e-3)
    fastvlm.load(tmp_path / "run" / "model", device="cpu")


@pytest.mark.slow  # DeepSpeed compiles its CPU messages first: a minute, once a machine
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs pip install deepspeed")
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_shared_out_by_deepspeed_learn_the_same(count, alone, small_model, small_data, tmp_path):
    config = yaml.safe_load((ROOT / "recipes" / "accelerate" / "deepspeed.yaml").read_text())
    config |= {"num_processes": count, "use_cpu": True, "mixed_precision": "no"}  # all else is as it is shipped
    file = tmp_path / "deepspeed.yaml"
    file.write_text(yaml.safe_dump(config))
    launcher = ("accelerate.commands.launch", "--config_file", str(file))
    recipe = small_run.recipe(small_model, small_data, micro_batch_size=2, max_steps=7)
    in_processes(recipe, tmp_path / "run", launcher=launcher, timeout_s=550, DS_ACCELERATOR="cpu")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone.folder), rel=1e-3)
    assert norms(tmp_path / "run") == pytest.approx(norms(alone.folder), rel=1e-2)
    fastvlm.load(tmp_path / "run" / "model", device="cpu")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_files(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert config.num_machines == 1 and config.num_processes in (2, 8)
    assert str(file.relative_to(ROOT)) in file.read_text(), "the file says how it is used"


def test_the_layers_that_fsdp_wraps_exist(small_model):
    model, _ = fastvlm.load(small_model, device="cpu")
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(FSDP2["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")) <= kinds
    text = (ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text()
    assert FSDP2["FSDP_TRANSFORMER_CLS_TO_WRAP"] in text
