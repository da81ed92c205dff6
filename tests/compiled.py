"""Where compiled kernels can be tested: on Linux, on a CPU with AMX, with a C++ compiler."""

import platform
import shutil

import pytest

from fastvlm.engine import native_build
from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.native_library import NEEDED_FLAGS, cpu_flags

__all__ = ["has_compiler", "is_possible"]

has_compiler = (platform.system(), platform.machine()) == ("Linux", "x86_64") and any(
    map(shutil.which, native_build._COMPILERS)
)

is_possible = pytest.mark.skipif(
    not cpu_flags() >= NEEDED_FLAGS or not cpu_kernels().has_bfloat16_tiles or not has_compiler,
    reason="needs Linux, a CPU with AMX, and a C++ compiler",
)
