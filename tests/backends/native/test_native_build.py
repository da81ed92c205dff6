"""The library is compiled once, whole or not at all, also by several at a time; without it torch does the work."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from compiled import is_fast, is_possible

from fastvlm.backends.native import build as native_build
from fastvlm.backends.native import kernels as native
from fastvlm.backends.native import library as native_library
from fastvlm.backends.native.build import build
from fastvlm.backends.native.kernels import all_kernels, native_kernels
from fastvlm.backends.native.library import LEVELS, SWITCH, cache_path, chosen_levels, installed_path, sealed
from fastvlm.errors import BuildError, UsageError

BUILD = "from fastvlm.backends.native.build import build; print(build().path)"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, where nothing was looked for yet, and nothing that installing left."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(native_library, "INSTALLED_FOLDER", tmp_path / "installed")
    all_kernels.cache_clear()
    yield tmp_path / "cache"
    all_kernels.cache_clear()


def placed(library, content=None, path=None):
    """The library where engines look for it, perhaps with another content."""
    path = path or cache_path()
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(library.read_bytes() if content is None else content)
    path.chmod(0o600)
    return path


@is_possible
def test_what_installing_left_is_used_unless_the_user_built_another(cache, library):
    placed(library, path=installed_path())
    assert native_library.find_library() == installed_path() and native_kernels() is not None
    placed(library)
    assert native_library.find_library() == cache_path()


@is_fast
def test_engines_take_what_was_built_and_can_be_told_not_to(cache, monkeypatch):
    assert native_kernels() is None
    assert build().path.parent == cache / "fastvlm" / "kernels"
    all_kernels.cache_clear()
    assert native_kernels() is not None
    all_kernels.cache_clear()
    monkeypatch.setenv(SWITCH, "torch")
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


def opened_to_all(path):
    path.chmod(0o622)


def folder_opened_to_the_group(path):
    path.parent.chmod(0o770)


def given_away(path):
    os.chown(path, 12345, 12345)


def folder_given_away(path):
    os.chown(path.parent, 12345, 12345)


def linked(path):
    path.symlink_to(path.rename(path.with_name("elsewhere.so")))


def folder_linked(path):
    path.parent.symlink_to(path.parent.rename(path.parent.with_name("elsewhere")))


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


@is_possible
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (opened_to_all, r"can be written by other users \(mode 622\)"),
        (folder_opened_to_the_group, r"can be written by other users \(mode 770\)"),
        (given_away, r"belongs to another user \(id 12345\)"),
        (folder_given_away, r"belongs to another user \(id 12345\)"),
        (linked, "is not a file, or is a link to one"),
        (folder_linked, "is not a folder, or is a link to one"),
        (replaced_by_a_folder, "is not a file"),
    ],
)
def test_what_others_may_have_written_is_never_loaded(cache, library, monkeypatch, change, reason):
    if "given_away" in change.__name__ and os.getuid() != 0:
        pytest.skip("only root gives files away")
    monkeypatch.setattr(native, "open_library", lambda path, _: pytest.fail(f"{path} was loaded"))
    change(placed(library))
    with pytest.warns(UserWarning, match=f"{reason}.*PyTorch's kernels are used instead.*fastvlm build-kernels"):
        assert native_kernels() is None


@is_possible
def test_what_installing_left_is_used_as_the_package_beside_it_is(cache, library):
    path = placed(library, path=installed_path())
    path.chmod(0o664)
    path.parent.chmod(0o775)  # as where users' own groups may write
    assert native_kernels() is not None


@is_possible
def test_what_is_built_is_its_users_alone(cache):
    cache_path().parent.mkdir(parents=True)
    cache_path().parent.chmod(0o777)
    cache_path().write_text("somebody else's")
    before = os.umask(0)
    try:
        path = build().path
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert native_library.distrust(path) is None and native_kernels() is not None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users' ids")
def test_a_folder_that_is_not_ours_is_not_built_in(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(native_library, "cpu_flags", lambda: LEVELS[0].needed)
    monkeypatch.setattr(native_build, "_compiler", lambda: "c++")
    cache_path().parent.parent.mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    cache_path().parent.symlink_to(tmp_path / "theirs")
    with pytest.raises(BuildError, match="is a link; expected a folder of this user"):
        build()
    assert list((tmp_path / "theirs").iterdir()) == []
    cache_path().parent.unlink()
    cache_path().parent.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BuildError, match=r"belongs to user .*Remove it, or set XDG_CACHE_HOME"):
        build()


@is_fast
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
    monkeypatch.setattr(native_library, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_kernels() is None
    with pytest.raises(BuildError, match=r"no kernels for this CPU; expected .*avx2, .*fma.* or aarch64 with asimd"):
        build()
    assert list(cache.iterdir()) == []


APPLE_COMPILER = """#!/bin/sh
echo "$@" >> "$0.log"
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""


def test_macos_gets_its_levels_and_its_linker_flags(cache, monkeypatch, tmp_path):
    compiler = tmp_path / "clang++"
    compiler.write_text(APPLE_COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(native_library, "LEVELS", LEVELS)
    monkeypatch.setattr(native_library.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(native_library.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(native_library, "_apple_has", lambda feature: feature == "FEAT_DotProd")
    assert chosen_levels() == ("neon",)
    monkeypatch.setattr(native_library, "_apple_has", lambda _: True)
    assert chosen_levels() == ("neon_dot", "neon")
    native_build.compile_library(tmp_path / "made" / "kernels.so", is_tried=False)
    *compiled, linked, _ = (tmp_path / "clang++.log").read_text().splitlines()
    assert {flag for line in compiled for flag in line.split() if "LEVEL" in flag} == {
        "-DFASTVLM_LEVEL=neon",
        "-DFASTVLM_LEVEL=neon_dot",
    }
    assert "-dynamiclib" in linked and "-ldl" not in linked and "-pthread" not in linked


def test_features_of_an_arm_cpu_are_read(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd40\n")
    monkeypatch.setattr(native_library, "LEVELS", LEVELS)
    monkeypatch.setattr(native_library, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(native_library.platform, "system", lambda: "Linux")
    monkeypatch.setattr(native_library.platform, "machine", lambda: "aarch64")
    assert native_library.available_levels() == ("neon_dot", "neon")


def test_the_environment_chooses_a_level(cache, monkeypatch):
    monkeypatch.setattr(native_library, "LEVELS", LEVELS)
    monkeypatch.setattr(
        native_library, "cpu_flags", lambda: next(level.needed for level in LEVELS if level.name == "avx512")
    )
    monkeypatch.setattr(native_library.platform, "machine", lambda: "x86_64")
    assert chosen_levels() == ("avx512", "avx2")
    for value, expected in {"avx2": ("avx2",), "avx512": ("avx512", "avx2"), "torch": ()}.items():
        monkeypatch.setenv(SWITCH, value)
        assert chosen_levels() == expected
    monkeypatch.setenv(SWITCH, "amx")
    with pytest.raises(UsageError, match=r"FASTVLM_KERNELS is 'amx'; expected .*: avx512, avx2, torch"):
        chosen_levels()


def test_every_process_finds_the_library_under_the_same_name():
    code = "from fastvlm.backends.native.library import library_name; print(library_name())"
    seeds = ({**os.environ, "PYTHONHASHSEED": seed} for seed in "12")
    names = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True) for env in seeds]
    assert names[0].stdout == names[1].stdout


@is_possible
def test_kernels_whose_results_are_wrong_are_named_once_and_not_used(cache, library, monkeypatch):
    placed(library)
    monkeypatch.setattr(native, "results_are_right", lambda *_: False)
    with pytest.warns(UserWarning, match="give wrong results in torch.float32.*fastvlm build-kernels") as warned:
        assert [native_kernels(torch.float32) for _ in range(2)] == [None, None]
    assert len(warned) == 1
