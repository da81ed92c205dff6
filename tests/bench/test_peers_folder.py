"""Peers that are not installed: one line that says how to get them; a folder that only asking processes see."""

import sys

import pytest

from fastvlm.bench import peers_folder
from fastvlm.bench.encoder_peers import OnnxRuntimeContestant, OpenVinoContestant
from fastvlm.bench.peers_folder import INSTALL_LINE, add_peers_folder, prepare_torchvision
from fastvlm.errors import FastVlmError, MissingExtraError


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_what_is_missing_is_named_with_its_install_line(monkeypatch, missing):
    found = peers_folder.importlib.util.find_spec
    monkeypatch.setattr(peers_folder.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(FastVlmError, match=f"^{missing} is not installed") as told:
        prepare_torchvision()
    assert INSTALL_LINE in str(told.value) and "\n" not in str(told.value)


def test_the_folder_is_added_once_and_only_if_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FASTVLM_PEERS", raising=False)
    before = list(sys.path)
    add_peers_folder()
    assert sys.path == before
    monkeypatch.setenv("FASTVLM_PEERS", str(tmp_path))
    add_peers_folder()
    add_peers_folder()
    assert sys.path == [*before, str(tmp_path)]


@pytest.mark.parametrize(
    ("kind", "package"), [(OpenVinoContestant, "openvino"), (OnnxRuntimeContestant, "onnxruntime")]
)
def test_runtimes_that_are_missing_name_the_extra(monkeypatch, kind, package):
    monkeypatch.setattr("fastvlm.bench.encoder_peers.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as told:
        kind("folder").open()
    assert package in str(told.value) and "pip install 'fastvlm[peers]'" in str(told.value)
