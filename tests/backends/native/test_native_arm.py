"""Compiled kernels for 64-bit Arm, made by a cross-compiler and run by qemu-user; ``make arm`` tests them at length."""

import ctypes

import arm_kernels
import natives
import pytest
import torch
from compiled import ARM_LEVELS

from fastvlm.backends.native import kernels as native

pytestmark = pytest.mark.skipif(bool(arm_kernels.MISSING), reason=f"needs {arm_kernels.MISSING} (packages of Debian's)")


@pytest.mark.parametrize("level", ARM_LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_function_gives_the_results_of_torch(level, threads, monkeypatch):
    kernels = natives.built(level)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert kernels.has_threads
    assert all(native.results_are_right(kernels, dtype) for dtype in kernels.dtypes)


def test_a_function_that_is_missing_and_memory_that_is_not_there_are_told():
    library = arm_kernels.ArmLibrary(natives.arm_library(), ARM_LEVELS["neon"])
    with pytest.raises(AttributeError, match="fastvlm_neon_nothing"):
        library.fastvlm_neon_nothing  # noqa: B018
    gelu = library.fastvlm_neon_gelu
    gelu.argtypes, gelu.restype = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_int], None
    with pytest.raises(AssertionError, match="touched 0x1000000000, which is no memory of this process"):
        gelu(0x1000000000, 8, 1, 1)
