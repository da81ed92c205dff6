"""One library of compiled kernels that all tests share."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from fastvlm.engine import native_build
from fastvlm.engine.native import NativeKernels, open_library
from fastvlm.engine.native_library import find_library

__all__ = ["built", "library"]


@functools.cache
def library() -> Path:
    """Path of the library: what is there, or one that is built now, for this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CXX", raising=False)
        found = find_library()
        if found is None:
            patch.setenv("XDG_CACHE_HOME", tempfile.mkdtemp())
            found = native_build.build().path
        return found


@functools.cache
def built() -> NativeKernels:
    """What is in it."""
    return open_library(library())
