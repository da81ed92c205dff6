"""Installing: a wheel with the compiled kernels where there is a compiler, a pure one where there is none."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from compiled import has_compiler

from fastvlm.backends.native import build as native_build
from fastvlm.backends.native.library import compiled_levels

ROOT = Path(__file__).parent.parent
TAG = "import hatch_build; hatch_build.platform_tags = lambda: iter({tags}); print(hatch_build.platform_tag())"
PURE = "py3-none-any"
KEEPING_COMPILER = """#!/bin/sh
{compiler} "$@" || exit $?
for last; do :; done
case "$last" in *.o) cp "$last" {folder};; esac
"""


def wheel(folder, **environment):
    """The wheel of this tree, and what its builder said."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=True
    )
    (path,) = folder.glob("*.whl")
    return path, done.stdout + done.stderr


def keeping_compiler(folder):
    """A compiler that also puts the object files into `folder`."""
    compiler = folder / "c++"
    found = next(filter(None, map(shutil.which, native_build._COMPILERS)))
    compiler.write_text(KEEPING_COMPILER.format(compiler=found, folder=folder))
    compiler.chmod(0o755)
    return str(compiler)


def shared_functions(folder, level):
    """Functions in the objects of this level, of which the linker keeps one for all levels: those of C++'s library."""
    names, own = set(), f"7fastvlm{len(level.name)}{level.name}"  # the namespace as symbols spell it
    for path in folder.glob(f"{level.name}-*.o"):
        lines = subprocess.check_output(["nm", "--defined-only", str(path)], text=True).splitlines()
        kinds = (line.split(maxsplit=2)[-2:] for line in lines)
        names |= {name for kind, name in kinds if kind in "WwVvu" and own not in name}
    return names


def libraries(path):
    return [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so")]


@pytest.mark.skipif(not has_compiler, reason="needs Linux, a CPU with kernels and a C++ compiler")
def test_a_wheel_has_the_kernels_that_its_sources_ask_for(tmp_path):
    (tmp_path / "objects").mkdir()
    path, _ = wheel(tmp_path, CXX=keeping_compiler(tmp_path / "objects"))
    name = "from fastvlm.backends.native.library import library_name; print(library_name())"
    expected = subprocess.run([sys.executable, "-c", name], capture_output=True, text=True, check=True).stdout.strip()
    assert libraries(path) == [f"fastvlm/backends/native/built/{expected}"]
    assert PURE not in path.name and f"linux_{os.uname().machine}" in path.name
    sources = {name for name in zipfile.ZipFile(path).namelist() if "backends/native/cpp/" in name}
    assert {Path(name).name for name in sources} >= {"encoder.cpp", "tiles.hpp"}
    least, *others = compiled_levels()
    for (
        level
    ) in others:  # the linker keeps the first: one with instructions that a lesser CPU lacks would end its process
        assert shared_functions(tmp_path / "objects", level) <= shared_functions(tmp_path / "objects", least)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["manylinux_2_36_aarch64", "manylinux2014_aarch64", "linux_aarch64"], "linux_aarch64"),
        (["macosx_15_0_arm64", "macosx_15_0_universal2", "macosx_14_0_arm64"], "macosx_15_0_arm64"),
    ],
)
def test_a_wheel_is_named_for_the_system_that_made_it(tags, expected):
    command = [sys.executable, "-c", TAG.format(tags=tags)]
    assert subprocess.check_output(command, cwd=ROOT, text=True).strip() == expected


def test_without_a_compiler_the_wheel_is_pure_and_says_so(tmp_path):
    path, said = wheel(tmp_path, CXX="no-such-compiler")
    assert libraries(path) == [] and PURE in path.name
    if sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64"):
        assert "kernels are left out" in said and "CXX is 'no-such-compiler'" in said


@pytest.mark.parametrize(("project", "package"), [(".", "fastvlm"), ("recipes", "fastvlm_recipes")])
def test_a_source_archive_has_its_own_package_and_no_other(project, package, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / project, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        names = {tuple(name.split("/")[1:]) for name in tar.getnames()}
    assert {name[1] for name in names if name[0] == "src"} == {package}
    assert not [name for name in names if name[0] in ("tests", "recipes", "docs")]
