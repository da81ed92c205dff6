"""The library is compiled once, whole or not at all, also by several at a time; without it torch does the work."""

import os
import subprocess
import sys
import warnings

import pytest
from compiled import is_possible

from fastvlm.engine import native, native_build, native_library
from fastvlm.engine.native import native_kernels
from fastvlm.engine.native_build import build
from fastvlm.engine.native_library import cache_path, installed_path, sealed
from fastvlm.errors import BuildError

BUILD = "from fastvlm.engine.native_build import build; print(build().path)"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, where nothing was looked for yet, and nothing that installing left."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native_library, "INSTALLED_FOLDER", tmp_path / "installed")
    native_kernels.cache_clear()
    yield tmp_path / "cache"
    native_kernels.cache_clear()


def placed(library, content=None, path=None):
    """The library where engines look for it, perhaps with another content."""
    path = path or cache_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(library.read_bytes() if content is None else content)
    return path


@is_possible
def test_what_installing_left_is_used_unless_the_user_built_another(cache, library):
    placed(library, path=installed_path())
    assert native_library.find_library() == installed_path() and native_kernels() is not None
    placed(library)
    assert native_library.find_library() == cache_path()


@is_possible
def test_engines_take_what_was_built_and_can_be_told_not_to(cache, monkeypatch):
    assert native_kernels() is None
    assert build().path.parent == cache / "fastvlm" / "kernels"
    native_kernels.cache_clear()
    assert native_kernels() is not None
    native_kernels.cache_clear()
    monkeypatch.setenv(native.SWITCH, "0")
    assert native_kernels() is None


@is_possible
def test_what_was_built_from_another_source_is_not_looked_at(cache, library, monkeypatch, tmp_path):
    placed(library, b"not a library")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "encoder.cpp").write_text("// another")
    monkeypatch.setattr(native_library, "SOURCE_FOLDER", tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_kernels() is None


@is_possible
@pytest.mark.parametrize("damage", ["empty", "half", "bit", "foreign"])
def test_a_damaged_library_is_named_once_and_not_used(cache, library, damage):
    content = library.read_bytes()
    changed = bytearray(content)
    changed[5000] ^= 1
    damaged = {"empty": b"", "half": content[: len(content) // 2], "bit": changed, "foreign": sealed(b"#!/bin/sh")}
    path = placed(library, bytes(damaged[damage]))
    with pytest.warns(UserWarning, match="fastvlm build-kernels") as warned:
        results = [native_kernels() for _ in range(2)]
    assert results == [None, None] and len(warned) == 1 and str(path) in str(warned[0].message)


@is_possible
def test_several_may_build_at_a_time(cache):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {one.communicate(timeout=300)[0].strip() for one in running}
    assert paths == {str(cache_path())} and all(one.returncode == 0 for one in running)
    assert [file.name for file in cache_path().parent.iterdir()] == [cache_path().name]
    assert native_kernels() is not None


@is_possible
def test_a_compiler_that_is_not_there_or_fails_is_told(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"CXX is 'no-such-compiler'.*expected g\+\+ 11"):
        build()
    monkeypatch.delenv("CXX")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "wrong.cpp").write_text('#error "this is wrong"\n')
    monkeypatch.setattr(native_build, "SOURCE_FOLDER", tmp_path / "wrong")
    with pytest.raises(BuildError, match=r"failed: .*this is wrong.* set CXX"):
        build()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"None of c\+\+, g\+\+, clang\+\+ is there"):
        build()
    assert list(cache_path().parent.iterdir()) == []


@is_possible
def test_a_place_that_cannot_be_written_is_told(cache, monkeypatch):
    (cache / "fastvlm").write_text("a file")
    with pytest.raises(BuildError, match=r"cannot be written.*Set XDG_CACHE_HOME"):
        build()


def test_a_cpu_that_lacks_something_is_told(cache, monkeypatch):
    for module in (native_library, native_build):
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx512f", "avx512bw", "amx_tile", "amx_bf16"}))
    assert native_kernels() is None
    with pytest.raises(
        BuildError, match="lacks amx_int8, avx512_bf16, avx512_vnni, avx512cd, avx512dq, avx512vbmi, avx512vl; expected"
    ):
        build()
    assert list(cache.iterdir()) == []
