"""Parts of files."""

import pytest

from fastvlm.errors import DataError
from fastvlm.records.source import read_bytes


def test_parts_of_files(tmp_path):
    (tmp_path / "x").write_bytes(b"abcdef")
    assert read_bytes(tmp_path / "x", 2, 3) == b"cde" and read_bytes(tmp_path / "x", 6, 0) == b""
    with pytest.raises(DataError, match="has become shorter since it was opened"):
        read_bytes(tmp_path / "x", 4, 3)
    with pytest.raises(DataError, match=r"y cannot be read any more \(No such file"):
        read_bytes(tmp_path / "y", 0, 1)
    with pytest.raises(DataError, match="Is a directory"):
        read_bytes(tmp_path, 0, 1)
