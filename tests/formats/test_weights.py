"""Weight files: what is read, and what broken ones get."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from fastvlm.errors import CheckpointError
from fastvlm.formats.safetensors_header import read_header
from fastvlm.formats.weight_sets import some_of
from fastvlm.formats.weights import WeightFiles


@pytest.fixture
def tensors():
    return {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(7),
        "d": torch.zeros(0, 3),
    }


def write_sharded(folder, tensors, index=None):
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    table = {key: file for file, keys in halves.items() for key in keys} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "old bin", "sharded bin"])
def test_all_kinds_of_files_give_the_same_tensors(tmp_path, tensors, kind):
    if kind == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    elif kind == "sharded":
        write_sharded(tmp_path, tensors)
    elif kind == "sharded bin":
        torch.save({"a": tensors["a"]}, tmp_path / "pytorch_model-1.bin")
        torch.save({k: tensors[k] for k in "bcd"}, tmp_path / "pytorch_model-2.bin")
        table = {key: f"pytorch_model-{1 if key == 'a' else 2}.bin" for key in tensors}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    weights = WeightFiles.of(tmp_path)
    assert set(weights.entries) == set(tensors)
    for key, tensor in tensors.items():
        entry = weights.entries[key]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert entry.num_bytes == tensor.numel() * tensor.element_size()
        assert torch.equal(weights.tensor(key), tensor)
        assert torch.equal(weights.lazy(key)[...], tensor)
    weights.close()


def test_safetensors_are_preferred_to_pickles(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.warns(UserWarning, match=r"two complete sets.*model\.safetensors, and pytorch_model\.bin"):
        assert set(WeightFiles.of(tmp_path).entries) == set(tensors)


class Trap:
    """Runs code when unpickled without care."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "trap": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"(?s)refused.*could run code.*safetensors"):
        WeightFiles.of(tmp_path)


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: _cut(f, f.stat().st_size - 1), "truncated"),
        (lambda f: _cut(f, 100), "only its beginning"),
        (lambda f: _cut(f, 3), "only its beginning"),
        (lambda f: _cut(f, 0), "only its beginning"),
        (lambda f: f.write_bytes(f.read_bytes() + b"more"), "longer than it should be"),
        (lambda f: f.write_bytes(b"\xff" * 500), "not a safetensors file"),
        (lambda f: f.write_bytes(struct.pack("<Q", 20) + b"{" * 20), "header that is not safetensors'"),
        (lambda f: f.write_bytes(struct.pack("<Q", 14) + b'{"a":{"b":1}} '), "header that is not safetensors'"),
        (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"[1] "), "header that is not safetensors'"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"), "git lfs pull"),
    ],
)
def test_a_broken_safetensors_file_is_one_clear_error(tmp_path, tensors, break_it, message):
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    break_it(file)
    with pytest.raises(CheckpointError, match=message) as caught:
        WeightFiles.of(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 30, 200])
def test_a_truncated_bin_is_one_clear_error(tmp_path, tensors, keep):
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors, file)
    _cut(file, keep)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (cannot be read|was refused)"):
        WeightFiles.of(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2)])
def test_a_bin_that_holds_no_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no dictionary of tensors"):
        WeightFiles.of(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    write_sharded(tmp_path, tensors)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002.safetensors' of them is not in .*incomplete"):
        WeightFiles.of(tmp_path)


def test_an_index_that_names_absent_tensors_is_an_error(tmp_path, tensors):
    table = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    write_sharded(tmp_path, tensors, index=table)
    with pytest.raises(CheckpointError, match=r"names 2 tensors that are not in the file.*'c', 'd'"):
        WeightFiles.of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": 1}'])
def test_an_index_that_is_none_is_an_error(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        WeightFiles.of(tmp_path)


def test_a_tensor_in_two_shards_is_an_error(tmp_path, tensors):
    write_sharded(tmp_path, tensors)
    save_file(
        {"a": torch.zeros(1), "c": tensors["c"], "d": tensors["d"]}, tmp_path / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"'a' twice"):
        WeightFiles.of(tmp_path)


def test_shards_without_an_index_ask_for_it(tmp_path, tensors):
    write_sharded(tmp_path, tensors)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither 'model.safetensors' nor"):
        WeightFiles.of(tmp_path)


def test_a_folder_without_weights_says_what_it_found(tmp_path):
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(CheckpointError, match=r"holds no weights.*'README.md'"):
        WeightFiles.of(tmp_path)


def test_headers_are_read_without_the_tensors(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"big": torch.zeros(1000, 1000)}, file)
    with file.open("r+b") as stream:  # the same header over bytes that are not there: a sparse file
        length = struct.unpack("<Q", stream.read(8))[0]
        stream.truncate(8 + length)
        stream.truncate(8 + length + 4_000_000)
    assert read_header(file)["big"].num_bytes == 4_000_000


def test_long_lists_are_shortened():
    assert some_of("abc") == "'a', 'b', 'c'"
    assert some_of([str(i) for i in range(12)]).endswith("'9' and 2 more")
