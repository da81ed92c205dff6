"""Compiled kernels in tests: on Linux with a C++ compiler, every level of ``fastvlm.backends.native.library``.

What the CPU has runs as it is; AVX-512 and AMX run in emulation elsewhere, by ``tests/emulated/immintrin.h``, so every
machine that compiles tests every kernel. The environment variable FASTVLM_TEST_KERNELS, words with commas between,
changes that: ``emulated`` emulates them on any CPU, ``sanitized`` compiles with AddressSanitizer and
UndefinedBehaviorSanitizer, whose libraries have to be preloaded (``make sanitize`` does), ``real`` skips what would be
emulated, ``arm`` tests the levels of 64-bit Arm in place of this machine's (``make arm``).
"""

import dataclasses
import os
import platform
import shutil
from pathlib import Path

import arm_kernels
import pytest

from fastvlm.backends.native import build as native_build
from fastvlm.backends.native import library as native_library
from fastvlm.backends.native.library import LEVELS, Level, compiled_levels, cpu_flags

__all__ = [
    "ARM_LEVELS",
    "EMULATION",
    "LEVEL_NAMES",
    "MODES",
    "has_compiler",
    "is_emulated",
    "is_fast",
    "is_possible",
    "prepare",
]

EMULATION = Path(__file__).parent / "emulated"
MODES = frozenset(filter(None, os.environ.get("FASTVLM_TEST_KERNELS", "").split(",")))
if unknown := MODES - {"emulated", "sanitized", "real", "arm"}:
    raise ValueError(f"FASTVLM_TEST_KERNELS has {sorted(unknown)}; expected emulated, sanitized, real or arm.")

has_compiler = (
    platform.system() == "Linux"
    and any(cpu_flags() >= level.needed for level in compiled_levels())
    and any(map(shutil.which, native_build._COMPILERS))
)
is_possible = pytest.mark.skipif(not has_compiler, reason="needs Linux, a CPU with kernels and a C++ compiler")

_PREDEFINED = {  # what the compiler predefines where it may use these instructions
    "avx2vnni": ("AVXVNNI",),
    "avx512": ("AVX512F", "AVX512BW", "AVX512DQ", "AVX512BF16"),
    "amx": ("AVX512F", "AVX512BW", "AVX512DQ", "AVX512BF16", "AMX_TILE", "AMX_BF16", "AMX_INT8"),
}
_EMULATED = ("-O1", "-march=native", "-mno-avx512f", "-Wno-psabi", f"-I{EMULATION}")
_EMULATED_ON_AVX2 = {"avx2vnni": ("-O1", "-march=x86-64-v3", f"-I{EMULATION / 'avx2vnni'}")}
_SANITIZED = ("-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def is_emulated(level: Level) -> bool:
    """True if tests run this level in emulation."""
    return level.name in _PREDEFINED and ("emulated" in MODES or not cpu_flags() >= level.needed)


is_fast = pytest.mark.skipif(
    any(map(is_emulated, compiled_levels())), reason="takes minutes in emulation: needs a CPU with AMX"
)
ARM_LEVELS = {level.name: level for level in compiled_levels(arm_kernels.MACHINE)}
if "arm" in MODES:
    LEVEL_NAMES = list(ARM_LEVELS)
else:
    LEVEL_NAMES = [level.name for level in compiled_levels() if not ("real" in MODES and is_emulated(level))]


def _tested(level: Level) -> Level:
    """The level as tests compile it."""
    extra = _SANITIZED if "sanitized" in MODES else ()
    if not is_emulated(level):
        return dataclasses.replace(level, flags=(*level.flags, *extra))
    flags = _EMULATED_ON_AVX2.get(level.name, _EMULATED)
    defined = (f"-D__{name}__" for name in _PREDEFINED[level.name])
    return dataclasses.replace(level, needed=LEVELS[0].needed, flags=(*flags, *defined, *extra))


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Let fastvlm compile what these tests run, and believe that the CPU is one for it."""
    patch.setattr(native_library, "LEVELS", tuple(_tested(level) for level in LEVELS if level.name in LEVEL_NAMES))
