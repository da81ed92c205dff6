"""Peers that are not installed: one line that says how to get them; a folder that only asking processes see."""

import sys

import pytest

from fastvlm.bench import peers_folder
from fastvlm.bench.encoder_peers import OnnxRuntimeEncoder, OpenVinoEncoder
from fastvlm.bench.llama_cpp_peer import LlamaCppDecoder
from fastvlm.bench.openvino_peer import OpenVinoDecoder
from fastvlm.bench.peers_folder import INSTALL_LINE, add_peers_folder, add_runtimes_folder, prepare_torchvision
from fastvlm.errors import FastVlmError, MissingExtraError


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_what_is_missing_is_named_with_its_install_line(monkeypatch, missing):
    found = peers_folder.importlib.util.find_spec
    monkeypatch.setattr(peers_folder.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(FastVlmError, match=f"^{missing} is not installed") as told:
        prepare_torchvision()
    assert INSTALL_LINE in str(told.value) and "\n" not in str(told.value)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No folder is named, none is in the current directory, and none at the root of the tree."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FASTVLM_PEERS", raising=False)
    monkeypatch.setattr(peers_folder.fastvlm, "__file__", str(tmp_path / "tree" / "src" / "fastvlm" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_is_added_once_and_only_if_there_is_one(monkeypatch, nowhere):
    before = list(sys.path)
    add_peers_folder()
    assert sys.path == before
    monkeypatch.setenv("FASTVLM_PEERS", str(nowhere))
    add_peers_folder()
    add_peers_folder()
    assert sys.path == [*before, str(nowhere)]


@pytest.mark.parametrize("root", [".", "tree"])
def test_what_make_peers_made_is_found_unless_another_is_named(monkeypatch, nowhere, root):
    before, made = list(sys.path), nowhere / root / ".venv-peers"
    made.mkdir(parents=True)
    monkeypatch.setenv("FASTVLM_PEERS", "")
    add_peers_folder()
    assert sys.path == before
    monkeypatch.delenv("FASTVLM_PEERS")
    add_peers_folder()
    assert sys.path == [*before, str(made)]


def test_runtimes_lie_apart_and_are_added_for_themselves(nowhere, monkeypatch):
    before, made = list(sys.path), nowhere / ".venv-peers" / "runtimes"
    add_runtimes_folder()
    assert sys.path == before
    made.mkdir(parents=True)
    add_runtimes_folder()
    assert sys.path == [*before, str(made)]


RUNTIMES = [
    (lambda: OpenVinoEncoder("folder", "work"), "openvino"),
    (lambda: OnnxRuntimeEncoder("folder"), "onnxruntime"),
    (lambda: OpenVinoDecoder("folder", "work"), "openvino"),
    (lambda: LlamaCppDecoder("folder", "work"), "xllamacpp"),
]


@pytest.mark.parametrize(("make", "package"), RUNTIMES)
def test_runtimes_that_are_missing_name_the_extra(monkeypatch, make, package):
    monkeypatch.setattr(peers_folder.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as told:
        make().open()
    assert package in str(told.value) and "pip install 'fastvlm[peers]'" in str(told.value)
