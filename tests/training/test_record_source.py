"""Errors that name their record, in every process; parts of files."""

import pickle

import pytest

from fastvlm.errors import DataError
from fastvlm.training.record_source import BadRecordError, read_bytes


def test_a_bad_record_tells_origin_and_reason_apart():
    error = BadRecordError.at("x.jsonl:3", DataError("it is no JSON: why"))
    for told in (error, pickle.loads(pickle.dumps(error))):
        assert (str(told), told.origin, told.reason) == (
            "x.jsonl:3: it is no JSON: why",
            "x.jsonl:3",
            "it is no JSON: why",
        )
        assert isinstance(told, DataError)


def test_a_text_alone_makes_one_as_a_loader_of_torch_does():
    error = BadRecordError("Caught it in a worker.\nx.jsonl:3: why")
    assert (error.origin, error.reason) == ("", str(error))


def test_parts_of_files(tmp_path):
    (tmp_path / "x").write_bytes(b"abcdef")
    assert read_bytes(tmp_path / "x", 2, 3) == b"cde" and read_bytes(tmp_path / "x", 6, 0) == b""
    with pytest.raises(DataError, match="has become shorter since it was opened"):
        read_bytes(tmp_path / "x", 4, 3)
    with pytest.raises(DataError, match=r"y cannot be read any more \(No such file"):
        read_bytes(tmp_path / "y", 0, 1)
    with pytest.raises(DataError, match="Is a directory"):
        read_bytes(tmp_path, 0, 1)
