"""Where compiled kernels can be built, and one library that all tests share."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from fastvlm.engine import native, native_build
from fastvlm.engine.native import NativeKernels, open_library

is_possible = pytest.mark.skipif(
    native.library_path() is None
    or not native.cpu_kernels().has_bfloat16_tiles
    or not any(map(native_build.shutil.which, native_build._COMPILERS)),
    reason="needs Linux, a CPU with AMX, and a C++ compiler",
)


@functools.cache
def built() -> NativeKernels:
    """The kernels, compiled once for this process."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_CACHE_HOME", str(Path(folder)))
        patch.delenv("CXX", raising=False)
        return open_library(native_build.build().path)
