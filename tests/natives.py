"""One library of compiled kernels that all tests share."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import compiled
import pytest

from fastvlm.backends.native.build import compile_library
from fastvlm.backends.native.kernels import NativeKernels, open_library
from fastvlm.backends.native.library import SWITCH, library_name

__all__ = ["built", "library"]

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
def built(level: str = "amx") -> NativeKernels:
    """The kernels of a level in it."""
    if level not in compiled.LEVEL_NAMES:
        pytest.skip(f"the level {level} would be emulated")
    (kernels,) = open_library(library(), [level])
    return kernels
