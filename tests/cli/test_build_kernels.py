"""`fastvlm build-kernels`: prints the library's path, or one line that says what is missing."""

import json
from pathlib import Path

import pytest

from fastvlm.engine import native, native_build


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.skipif(
    native.library_path() is None or not any(map(native_build.shutil.which, native_build._COMPILERS)),
    reason="needs Linux, a CPU with AMX, and a C++ compiler",
)
def test_the_path_is_printed(fastvlm):
    outcome = fastvlm("build-kernels")
    assert (outcome.code, outcome.err) == (0, "")
    assert Path(outcome.out.strip()) == native.library_path() and native.library_path().is_file()
    content = json.loads(fastvlm("build-kernels", "--json").out)
    assert content["path"] == str(native.library_path()) and content["compiler"] and content["version"]


def test_a_cpu_without_is_an_error_of_one_line(fastvlm, monkeypatch):
    for module in (native, native_build):
        monkeypatch.setattr(module, "cpu_flags", frozenset)
    outcome = fastvlm("build-kernels")
    assert outcome.code == 1 and "lacks" in outcome.error and "Nothing needs these kernels" in outcome.error
