"""One library of compiled kernels that all tests share."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import arm_kernels
import compiled
import pytest
import torch

from fastvlm.backends.native import kernels as native
from fastvlm.backends.native import library as native_library
from fastvlm.backends.native.build import compile_library
from fastvlm.backends.native.kernels import NativeKernels, open_library
from fastvlm.backends.native.library import LEVELS, SWITCH, library_name

__all__ = ["CASES", "arm_library", "built", "library", "most_rows"]

_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "d" / "kernels"


@functools.cache
def library() -> Path:
    """Path of the library: what is there, or one that is built now and kept for other processes of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CXX", raising=False)
        patch.delenv(SWITCH, raising=False)
        compiled.prepare(patch)
        key = hashlib.sha256((compiled.EMULATION / "immintrin.h").read_bytes()).hexdigest()[:8]
        path = _CACHE / key / library_name()
        return path if path.is_file() else compile_library(path, is_tried=True).path


@functools.cache
def arm_library() -> Path:
    """Path of the library for 64-bit Arm, made by the cross-compiler."""
    if arm_kernels.MISSING:
        pytest.skip(f"needs {arm_kernels.MISSING} (Debian's packages)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", arm_kernels.COMPILER)
        patch.setattr(native_library.platform, "machine", lambda: arm_kernels.MACHINE)
        patch.setattr(native_library, "LEVELS", tuple(compiled.ARM_LEVELS.values()))
        path = _CACHE / arm_kernels.MACHINE / library_name()
        return path if path.is_file() else compile_library(path, is_tried=False).path


@functools.cache
def built(level: str = "amx") -> NativeKernels:
    """The kernels of a level; those for Arm run in qemu."""
    with pytest.MonkeyPatch.context() as patch:
        if level in compiled.ARM_LEVELS:
            path, needed = arm_library(), compiled.ARM_LEVELS[level]
            patch.setattr(native.ctypes, "CDLL", lambda _: arm_kernels.ArmLibrary(path, needed))
        elif level not in compiled.LEVEL_NAMES:
            pytest.skip(f"the level {level} is not tested here")
        else:
            path = library()
        (kernels,) = open_library(path, [level])
    return kernels


# Levels and the dtypes that are tested on them.
CASES = [
    pytest.param((level, dtype), id=f"{level}-{str(dtype).removeprefix('torch.')}")
    for level in compiled.LEVEL_NAMES
    for dtype in ([torch.bfloat16] if level == "amx" else [torch.float32, torch.bfloat16])
]


def most_rows(kernels: NativeKernels) -> int:
    """Rows that tests multiply at most: emulation takes a hundred times as long."""
    level = next(level for level in LEVELS if level.name == kernels.level)
    return 50 if compiled.is_emulated(level) else 600
