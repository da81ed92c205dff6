"""Where compiled kernels can be tested: on Linux, on a CPU with AMX, with a C++ compiler."""

import pytest

from fastvlm.engine import native_build
from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.native_library import NEEDED_FLAGS, cpu_flags

__all__ = ["is_possible"]

is_possible = pytest.mark.skipif(
    not cpu_flags() >= NEEDED_FLAGS
    or not cpu_kernels().has_bfloat16_tiles
    or not any(map(native_build.shutil.which, native_build._COMPILERS)),
    reason="needs Linux, a CPU with AMX, and a C++ compiler",
)
