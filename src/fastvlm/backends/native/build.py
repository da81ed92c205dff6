"""Compiles ``cpp/`` into the library that :mod:`fastvlm.backends.native.kernels` opens."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastvlm.backends.native.library import (
    COMPILER_FLAGS,
    LEVELS,
    SOURCE_FOLDER,
    Level,
    available_levels,
    cache_path,
    compiled_levels,
    sealed,
)
from fastvlm.errors import BuildError

_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 300
_LINKED = ("-shared", "-pthread", "-ldl")
_LINKED_BY_APPLE = ("-dynamiclib", "-undefined", "dynamic_lookup")
_TORCH_IS_ENOUGH = "These kernels are optional: without them PyTorch's are used."


@dataclass(frozen=True)
class BuiltLibrary:
    """A built library: its path, the compiler and the compiler's version."""

    path: Path
    compiler: str
    version: str


def build() -> BuiltLibrary:
    """Compile the kernels, check them and write them into the user's cache directory, replacing an existing library.

    Several processes may build at the same time. A process that has the replaced library open keeps it.

    Raises:
        BuildError: the CPU lacks features, there is no compiler, compiling fails, the results are wrong, or the folder
            cannot be written.
    """
    if not available_levels():
        least = {level.machine: level for level in reversed(LEVELS)}.values()
        expected = " or ".join(f"{level.machine} with {', '.join(sorted(level.needed))}" for level in reversed(least))
        raise BuildError(
            f"There are no kernels for this CPU; expected Linux on {expected}, or macOS on arm64. {_TORCH_IS_ENOUGH}"
        )
    return compile_library(cache_path(), is_tried=True)


def compile_library(path: Path, *, is_tried: bool) -> BuiltLibrary:
    """Compile the kernels to `path` atomically; `is_tried` checks them, which needs torch and a supported CPU.

    With `is_tried`, file and folder become accessible to this user only (0700), as ``library.distrust`` requires.

    Raises:
        BuildError: as :func:`build`.
    """
    compiler = _compiler()
    try:
        path.parent.mkdir(mode=0o700 if is_tried else 0o777, parents=True, exist_ok=True)
        if is_tried:
            _claim(path.parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
            new = Path(folder) / path.name
            _compile(compiler, new)
            new.write_bytes(sealed(new.read_bytes()))
            if is_tried:
                new.chmod(0o700)
                _try(new)
            new.replace(path)
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error}. Set XDG_CACHE_HOME to a folder that can.") from error
    return BuiltLibrary(path, compiler, _version(compiler))


def _claim(folder: Path) -> None:
    """Make `folder` writable by this user only.

    Raises:
        BuildError: it is a link, or belongs to another user.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        what = f"belongs to user {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "is a link"
        raise BuildError(f"{folder} {what}; expected a folder of this user. Remove it, or set XDG_CACHE_HOME.")
    folder.chmod(0o700)


def _compiler() -> str:
    """Path of the C++ compiler: the environment variable CXX, or the first one found."""
    named = os.environ.get("CXX")
    candidates = (named,) if named else _COMPILERS
    found = next((path for path in map(shutil.which, candidates) if path is not None), None)
    if found is None:
        searched = f"CXX is {named!r}, which is not a program" if named else f"None of {', '.join(_COMPILERS)} is there"
        raise BuildError(
            f"{searched}; expected g++ 11 or later, or clang++ 12. Debian: apt install g++. {_TORCH_IS_ENOUGH}"
        )
    return found


def _compile(compiler: str, target: Path) -> None:
    """Compile each source for each level, several at a time, and link all into `target`."""
    objects = [
        (level, source, target.with_name(f"{level.name}-{'-'.join(source.relative_to(SOURCE_FOLDER).parts)}.o"))
        for level in compiled_levels()
        for source in sorted(SOURCE_FOLDER.rglob("*.cpp"))
    ]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(lambda job: _compile_object(compiler, *job), objects))
    flags = _LINKED_BY_APPLE if platform.system() == "Darwin" else _LINKED
    _checked(compiler, *(str(made) for _, _, made in objects), "-o", str(target), *flags, made=target)


def _compile_object(compiler: str, level: Level, source: Path, made: Path) -> None:
    defined = f"-DFASTVLM_LEVEL={level.name}"
    _checked(compiler, *COMPILER_FLAGS, *level.flags, defined, "-c", str(source), "-o", str(made), made=made)


def _checked(compiler: str, *arguments: str, made: Path) -> None:
    try:
        done = _run(compiler, *arguments)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise BuildError(f"{compiler} could not be run: {error}. Try another one: set CXX.") from error
    if done.returncode or not made.is_file():
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it said nothing"]
        advice = f"Try g++ 11 or later, or clang++ 12: set CXX. {_TORCH_IS_ENOUGH}"
        raise BuildError(f"{compiler} failed: {lines[0]}. {advice}")


def _try(library: Path) -> None:
    from fastvlm.backends.native.decoder import passes_are_right  # noqa: PLC0415
    from fastvlm.backends.native.kernels import (  # noqa: PLC0415  # needs torch, which an installer has not
        open_library,
        results_are_right,
    )
    from fastvlm.backends.native.linear import linears_are_right  # noqa: PLC0415

    try:
        for kernels in open_library(library, available_levels()):
            checks = results_are_right, linears_are_right, passes_are_right
            for dtype in kernels.dtypes:
                if not all(is_right(kernels, dtype) for is_right in checks):
                    raise ValueError(f"the results of the level {kernels.level} are wrong in {dtype}")
    except (OSError, AttributeError, ValueError) as error:
        raise BuildError(f"What was compiled cannot be used: {error}. Try another compiler: set CXX.") from error


def _version(compiler: str) -> str:
    """The first line of the compiler's version output."""
    return next(iter(_run(compiler, "--version").stdout.splitlines()), "")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  # the compiler that this user's own PATH or CXX names
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )
