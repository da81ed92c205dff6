"""`fastvlm convert`: there and back, all or nothing, nothing overwritten."""

import json

import parrot
import pytest
from safetensors import safe_open


def tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


def test_there_and_back(fastvlm, parrot_folder, image, tmp_path):
    apple, back = tmp_path / "apple", tmp_path / "back"
    outcome = fastvlm("convert", parrot_folder, apple, "--to", "llava_qwen2")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{apple}\n", "")
    assert json.loads((apple / "config.json").read_text())["model_type"] == "llava_qwen2"
    assert fastvlm("ask", image, "What?", "-m", apple).out == parrot.SENTENCE + "\n"
    assert json.loads(fastvlm("info", apple, "--json").out)["layout"] == "llava_qwen2"
    assert fastvlm("convert", apple, back).code == 0
    before, after = tensors(parrot_folder), tensors(back)
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_dtype_and_shards(fastvlm, parrot_folder, tmp_path):
    target = tmp_path / "small"
    outcome = fastvlm("convert", parrot_folder, target, "--dtype", "bfloat16", "--max-shard-size", "500KB")
    assert outcome.code == 0
    facts = json.loads(fastvlm("info", target, "--json").out)
    assert facts["dtype"] == "bfloat16" and facts["num_files"] > 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--to", "llava"], 2, "--to is 'llava'; expected one of fast_vlm, llava_qwen2. Did you mean 'llava_qwen2'?"),
        (["--dtype", "int8"], 2, "--dtype is 'int8'"),
        (["--max-shard-size", "big"], 2, "max_shard_size is 'big'"),
    ],
)
def test_impossible_options(fastvlm, parrot_folder, tmp_path, options, code, words):
    outcome = fastvlm("convert", parrot_folder, tmp_path / "x", *options)
    assert outcome.code == code and words in outcome.error
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(fastvlm, parrot_folder, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    outcome = fastvlm("convert", parrot_folder, target)
    assert outcome.code == 2 and "nothing is overwritten" in outcome.error
    assert list(target.iterdir()) == []


def test_a_failed_conversion_leaves_nothing(fastvlm, parrot_folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastvlm.conversion.convert.write_safetensors", fail)
    outcome = fastvlm("convert", parrot_folder, tmp_path / "full")
    assert outcome.code == 1 and "No space left on device" in outcome.error
    assert not [path for path in tmp_path.iterdir() if "full" in path.name]
