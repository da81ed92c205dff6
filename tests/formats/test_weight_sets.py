"""Folders with more than one set of weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fastvlm.errors import CheckpointError
from fastvlm.formats.quantized_metadata import QUANTIZED_FILE, REST_FILE
from fastvlm.formats.weights import WeightFiles


def shards(folder, name, save):
    """Two shards and their index, under the names that transformers gives."""
    stem, suffix = name.rsplit(".", 1)
    files = {"a": f"{stem}-00001-of-00002.{suffix}", "b": f"{stem}-00002-of-00002.{suffix}"}
    for key, file in files.items():
        save({key: torch.ones(2)}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": files}))


def write(folder, kind):
    name, save = (
        ("model.safetensors", save_file) if kind.startswith("safetensors") else ("pytorch_model.bin", torch.save)
    )
    if kind.endswith("shards"):
        shards(folder, name, save)
    else:
        save({"a": torch.zeros(2), "b": torch.zeros(2)}, folder / name)


@pytest.mark.parametrize(
    ("kinds", "first", "second"),
    [
        (
            ("safetensors", "safetensors shards"),
            "model.safetensors",
            "model.safetensors.index.json with 2 shards",
        ),
        (("bin", "bin shards"), "pytorch_model.bin", "pytorch_model.bin.index.json with 2 shards"),
    ],
)
def test_two_sets_of_one_format_are_an_error_that_names_both(tmp_path, kinds, first, second):
    for kind in kinds:
        write(tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        WeightFiles.of(tmp_path)
    assert f"two complete sets of weights: {first}, and {second}." in str(caught.value)
    assert "move the files of one of them" in str(caught.value)


@pytest.mark.parametrize("taken", ["safetensors", "safetensors shards"])
@pytest.mark.parametrize("other", ["bin", "bin shards"])
def test_pickles_beside_safetensors_are_a_warning(tmp_path, taken, other):
    write(tmp_path, taken)
    write(tmp_path, other)
    with pytest.warns(UserWarning, match="two complete sets of weights.*safetensors are taken"):
        weights = WeightFiles.of(tmp_path)
    assert {file.suffix for file in weights.files} == {".safetensors"}


def test_a_quantized_folder_with_plain_weights_is_an_error(tmp_path):
    write(tmp_path, "safetensors")
    for name in (QUANTIZED_FILE, REST_FILE):
        shutil.copyfile(tmp_path / "model.safetensors", tmp_path / name)
    with pytest.raises(CheckpointError, match=f"two complete sets of weights: {QUANTIZED_FILE} and {REST_FILE}, and"):
        WeightFiles.of(tmp_path)


@pytest.mark.parametrize("other", ["safetensors", "bin"])
def test_shards_that_are_not_complete(tmp_path, other):
    """Beside a whole file of the same format they are a leftover; pickles do not take their place."""
    write(tmp_path, "safetensors shards")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    write(tmp_path, other)
    if other == "safetensors":
        assert [file.name for file in WeightFiles.of(tmp_path).files] == ["model.safetensors"]
        return
    with pytest.raises(CheckpointError, match="incomplete: fetch the missing files"):
        WeightFiles.of(tmp_path)
