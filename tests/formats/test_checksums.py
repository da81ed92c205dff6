"""SHA256SUMS: what is written verifies, here and with sha256sum; what was changed is found."""

import hashlib
import os
import shutil
import subprocess

import parrot
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastvlm
from fastvlm.conversion.quantize import quantize
from fastvlm.errors import CheckpointError
from fastvlm.formats.checksums import CHECKSUM_FILE, verify_checksums, write_checksums
from fastvlm.formats.places import checkpoint_path
from fastvlm.formats.quantized_file import QUANTIZED_FILE, QuantizationOptions


def states(folder):
    return {check.name: check.state for check in verify_checksums(folder)}


@pytest.fixture(scope="module")
def parrot_folder(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "parrot")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "checkpoint"
    (made / "inside").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights" * 400_000)
    (made / "inside" / "config.json").write_bytes(b"{}")
    (made / "README.md").write_text("card")
    write_checksums(made)
    return made


def test_the_list_is_sha256sums_own(folder):
    assert states(folder) == {"model.safetensors": "good", "inside/config.json": "good"}
    if shutil.which("sha256sum"):
        done = subprocess.run(
            ["sha256sum", "-c", CHECKSUM_FILE], cwd=folder, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "model.safetensors: OK" in done.stdout


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_name_comes_back(tmp_path_factory, name):
    made = tmp_path_factory.mktemp("checkpoint")
    if name in (".", "..") or name.startswith(".") or len(os.fsencode(name)) > 200:
        return
    (made / name).write_bytes(b"x")
    write_checksums(made)
    expected = {} if name in ("README.md", CHECKSUM_FILE) else {name: "good"}
    if expected:
        assert states(made) == expected


def test_what_happened_to_files_is_told_apart(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[1_000_000] ^= 1  # one bit
    (folder / "model.safetensors").write_bytes(data)
    (folder / "inside" / "config.json").unlink()
    (folder / "chat_template.jinja").write_text("new")
    (folder / "README.md").write_text("another card")
    (folder / ".hidden").write_text("of an editor")
    assert states(folder) == {
        "model.safetensors": "changed",
        "inside/config.json": "missing",
        "chat_template.jinja": "not_listed",
    }


def test_progress_counts_every_byte_once(folder):
    heard = []
    verify_checksums(folder, lambda done, total: heard.append((done, total)))
    total = sum(file.stat().st_size for file in (folder / "model.safetensors", folder / "inside" / "config.json"))
    assert heard[-1] == (total, total) and heard == sorted(heard) and len(heard) > 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"has no SHA256SUMS.*sha256sum \* >"),
        (b"", "is empty"),
        (b"nonsense\n", "line 1, is not in sha256sum's format"),
        (b"ab  config.json\n", "line 1, is not in sha256sum's format"),
        (b"\xff" * 80, "line 1, is not in sha256sum's format"),
        (b"0" * 64 + b"  ../secret\n", "outside the folder"),
        (b"0" * 64 + b"  /etc/passwd\n", "outside the folder"),
        (b"\\" + b"0" * 64 + b"  /etc/pass\\nwd\n", "outside the folder"),
        (b"x" * (2 << 20), "is larger than"),
    ],
)
def test_lists_that_are_none(folder, content, words):
    (folder / CHECKSUM_FILE).unlink()
    if content is not None:
        (folder / CHECKSUM_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        verify_checksums(folder)


def test_lists_of_others_are_read(folder):
    """Upper case, binary marks, Windows line ends, a leading ./"""
    digest = hashlib.sha256(b"{}").hexdigest().upper()
    (folder / CHECKSUM_FILE).write_bytes(f"{digest} *./inside/config.json\r\n".encode())
    assert states(folder)["inside/config.json"] == "good"


@pytest.mark.parametrize("layout", ["fast_vlm", "llava_qwen2"])
def test_convert_writes_them_and_the_folder_opens(tmp_path, parrot_folder, layout):
    fastvlm.convert(parrot_folder, tmp_path / "made", to=layout)
    found = states(tmp_path / "made")
    assert set(found.values()) == {"good"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(found)
    fastvlm.load(tmp_path / "made")


def test_a_flipped_bit_in_quantized_weights_is_found(tmp_path, parrot_folder):
    quantize(parrot_folder, tmp_path / "made", QuantizationOptions())
    assert set(states(tmp_path / "made").values()) == {"good"}
    file = tmp_path / "made" / QUANTIZED_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert {name for name, state in states(tmp_path / "made").items() if state != "good"} == {QUANTIZED_FILE}


def test_the_shipped_checkpoint_verifies():
    assert set(states(checkpoint_path("mini")).values()) == {"good"}
