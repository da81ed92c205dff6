"""`fastvlm build-kernels`: prints the library's path, or one line that says what is missing."""

import json
from pathlib import Path

import pytest
from compiled import is_fast

from fastvlm.backends.native import library as native_library
from fastvlm.backends.native.library import cache_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)


@is_fast
def test_the_path_is_printed(fastvlm):
    outcome = fastvlm("build-kernels")
    assert (outcome.code, outcome.err) == (0, "")
    assert Path(outcome.out.strip()) == cache_path() and cache_path().is_file()
    content = json.loads(fastvlm("build-kernels", "--json").out)
    assert content["path"] == str(cache_path()) and content["compiler"] and content["version"]


def test_a_cpu_without_is_an_error_of_one_line(fastvlm, monkeypatch):
    monkeypatch.setattr(native_library, "cpu_flags", frozenset)
    outcome = fastvlm("build-kernels")
    assert (
        outcome.code == 1
        and "no kernels for this CPU" in outcome.error
        and "These kernels are optional" in outcome.error
    )
