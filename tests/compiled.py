"""Compiled kernels in tests: on Linux with a C++ compiler; on CPUs without AMX they run in emulation.

``tests/emulated/immintrin.h`` stands in for the instructions, so every machine that compiles tests every kernel. The
environment variable FASTVLM_TEST_KERNELS, words with commas between, changes that: ``emulated`` emulates on any CPU,
``sanitized`` compiles with AddressSanitizer and UndefinedBehaviorSanitizer, whose libraries have to be preloaded
(``make sanitize`` does), ``real`` skips what would be emulated.
"""

import dataclasses
import os
import platform
import shutil
from pathlib import Path

import pytest

from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.native import build as native_build
from fastvlm.backends.native import kernels as native
from fastvlm.backends.native import library as native_library
from fastvlm.backends.native.library import COMPILER_FLAGS, NEEDED_FLAGS, cpu_flags

__all__ = ["EMULATION", "MODES", "flags", "has_compiler", "is_emulated", "is_fast", "is_possible", "prepare"]

EMULATION = Path(__file__).parent / "emulated"
MODES = frozenset(filter(None, os.environ.get("FASTVLM_TEST_KERNELS", "").split(",")))
if unknown := MODES - {"emulated", "sanitized", "real"}:
    raise ValueError(f"FASTVLM_TEST_KERNELS has {sorted(unknown)}; expected emulated, sanitized or real.")

has_compiler = (platform.system(), platform.machine()) == ("Linux", "x86_64") and any(
    map(shutil.which, native_build._COMPILERS)
)
_has_amx = cpu_flags() >= NEEDED_FLAGS and cpu_kernels().has_bfloat16_tiles
is_emulated = "emulated" in MODES or not _has_amx

is_possible = pytest.mark.skipif(
    not has_compiler or (is_emulated and "real" in MODES), reason="needs Linux on x86-64 and a C++ compiler"
)
is_fast = pytest.mark.skipif(is_emulated, reason="takes minutes in emulation: needs a CPU with AMX")

_PLAIN = ("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")
_LEVELS = ("AVX512F", "AVX512BW", "AVX512DQ", "AVX512BF16", "AMX_TILE", "AMX_BF16", "AMX_INT8")
_EMULATED = (*_PLAIN, "-O1", "-march=native", "-mno-avx512f", "-Wno-psabi", f"-I{EMULATION}")
_SANITIZED = ("-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def flags() -> tuple[str, ...]:
    """What the compiler is given."""
    base = (*_EMULATED, *(f"-D__{level}__" for level in _LEVELS)) if is_emulated else COMPILER_FLAGS
    return (*base, *(_SANITIZED if "sanitized" in MODES else ()))


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Let fastvlm compile what these tests run, and believe that the CPU is one for it."""
    for module in (native_library, native_build):
        patch.setattr(module, "COMPILER_FLAGS", flags())
    if is_emulated:
        for module in (native_library, native_build):
            patch.setattr(module, "cpu_flags", lambda: NEEDED_FLAGS)
        kernels = dataclasses.replace(cpu_kernels(), has_bfloat16_tiles=True)
        patch.setattr(native, "cpu_kernels", lambda: kernels)
