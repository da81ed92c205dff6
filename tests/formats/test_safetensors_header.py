"""Headers that lie or are too much."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fastvlm.errors import CheckpointError
from fastvlm.formats.safetensors_header import read_header


def with_header(folder, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return file


def test_a_header_of_a_million_keys_is_not_parsed(tmp_path):
    raw = b'{"0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' + b" " * 60_000_000 + b"}"  # as long as a million
    with pytest.raises(CheckpointError, match=f"has a header of {len(raw)} bytes"):
        read_header(with_header(tmp_path, raw))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "ab", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [10**15, 10**15], "data_offsets": [0, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
        7,
    ],
)
def test_entries_that_contradict_themselves(tmp_path, entry):
    with pytest.raises(CheckpointError, match="not safetensors'"):
        read_header(with_header(tmp_path, {"a": entry}, b"12345678"))


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a": 1', b"7", b"null", b'{"a": 1e999}'])
def test_headers_that_are_no_headers(tmp_path, header):
    with pytest.raises(CheckpointError, match="not safetensors'"):
        read_header(with_header(tmp_path, header))


_GOOD = save({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)})


@given(st.integers(0, len(_GOOD) - 1), st.integers(0, 255))
def test_a_file_with_one_other_byte_is_read_or_refused(tmp_path_factory, place, byte):
    file = tmp_path_factory.mktemp("files") / "model.safetensors"
    file.write_bytes(_GOOD[:place] + bytes([byte]) + _GOOD[place + 1 :])
    try:
        entries = read_header(file)
    except CheckpointError:
        return
    assert all(entry.num_bytes <= len(_GOOD) for entry in entries.values())
