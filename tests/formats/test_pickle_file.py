"""``.bin`` files that are too much, or no weights."""

import pickle
import zipfile

import pytest
import torch

from fastvlm.errors import CheckpointError
from fastvlm.formats.pickle_file import read_pickle


def saved(folder, content, **settings):
    file = folder / "pytorch_model.bin"
    torch.save(content, file, **settings)
    return file


def repacked(file, compression, **changed):
    """The same zip file with its records compressed, and some of them replaced."""
    with zipfile.ZipFile(file) as opened:
        records = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(file, "w", compression) as packed:
        for name, data in records.items():
            packed.writestr(name, changed.get(name.rsplit("/", 1)[-1].replace(".", "_"), data))
    return file


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_come_back(tmp_path, is_zip):
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(7), "c": torch.zeros(0, 2)}
    found = read_pickle(saved(tmp_path, tensors, _use_new_zipfile_serialization=is_zip))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()) and len(found) == 3


def test_a_compressed_file_is_refused_before_it_grows(tmp_path):
    file = repacked(saved(tmp_path, {"a": torch.zeros(10_000_000)}), zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"is compressed.*would grow.*safetensors"):
        read_pickle(file)


def test_names_of_tensors_are_bounded(tmp_path):
    file = repacked(saved(tmp_path, {"a": torch.zeros(1)}), zipfile.ZIP_STORED, data_pkl=b"N" * (17 << 20))
    with pytest.raises(CheckpointError, match=r"needs \d+ bytes to name its tensors"):
        read_pickle(file)


@pytest.mark.parametrize("is_64_bit", [False, True])
def test_records_are_counted_before_they_are_listed(tmp_path, monkeypatch, is_64_bit):
    monkeypatch.setattr("fastvlm.formats.pickle_file._MAX_RECORDS", 9)
    file = tmp_path / "pytorch_model.bin"
    with monkeypatch.context() as patch, zipfile.ZipFile(file, "w") as packed:
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5 if is_64_bit else 100)
        for index in range(10):
            packed.writestr(str(index), b"")
    with pytest.raises(CheckpointError, match="10 records"):
        read_pickle(file)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"larger than the whole file"):
        read_pickle(saved(tmp_path, {"a": torch.zeros(1).expand(10**6, 10**6)}))


@pytest.mark.parametrize(
    "content", [{"a": torch.eye(2).to_sparse()}, {1: torch.zeros(1)}, {"a": torch.zeros(1, device="meta")}]
)
def test_other_tensors_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"not a named tensor|cannot be read|was refused"):
        read_pickle(saved(tmp_path, content))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, torch.zeros(1)])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"holds no dictionary of tensors"):
        read_pickle(saved(tmp_path, content))


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"PK\x05\x06" + bytes(10), b"\x80\x02", pickle.dumps(None)[:-1], b"PK\x03\x04" + bytes(100)]
)
def test_what_is_no_file_of_torch_is_refused(tmp_path, data):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot be read as PyTorch weights|was refused"):
        read_pickle(file)
