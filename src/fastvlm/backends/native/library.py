"""Location, name and trust check of the library of compiled kernels. Does not import torch.

It is searched for in the user's cache directory, where ``fastvlm build-kernels`` puts it, and then in this package,
where installation puts it if there is a compiler (``hatch_build.py``). Its name is a hash of its sources and flags, so
a library of another version is ignored. It can be compiled anywhere: it holds the kernels of every level of
:data:`LEVELS`, and the CPU and ``FASTVLM_KERNELS`` choose among them when it is opened.

A library ends with its own SHA-256, so that a partial one is never loaded. Its name is predictable, so it is loaded
only if no other user can have written it: see :func:`distrust`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastvlm.errors import UsageError

SOURCE_FOLDER = Path(__file__).with_name("cpp")
INSTALLED_FOLDER = Path(__file__).with_name("built")
COMPILER_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden")
SWITCH = "FASTVLM_KERNELS"  # the environment variable that forces a level
TORCH = "torch"  # its value for PyTorch's kernels


@dataclass(frozen=True)
class Level:
    """Instructions that the kernels are compiled for.

    Attributes:
        name: its namespace and part of its functions' names.
        machine: as ``platform.machine()`` says on Linux.
        needed: what the CPU must have, as Linux calls it.
        flags: for the compiler.
    """

    name: str
    machine: str
    needed: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = frozenset(["avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"])
_AVX512 = frozenset(
    ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "avx512vbmi"]
)
_AVX512_FLAGS = ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi")
# From the least to the most: a function of the C++ library that several levels need is then taken from the least.
LEVELS = (
    Level("avx2", "x86_64", _AVX2, ("-march=x86-64-v3",)),
    Level("avx2vnni", "x86_64", _AVX2 | {"avx_vnni"}, ("-march=x86-64-v3", "-mavxvnni")),
    Level("avx512", "x86_64", _AVX2 | _AVX512, _AVX512_FLAGS),
    Level(
        "amx",
        "x86_64",
        _AVX2 | _AVX512 | {"amx_tile", "amx_bf16", "amx_int8"},
        (*_AVX512_FLAGS, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
    Level("neon", "aarch64", frozenset(["asimd"]), ("-march=armv8-a",)),
    Level(
        "neon_dot",
        "aarch64",
        frozenset(["asimd", "asimddp", "bf16", "i8mm"]),
        ("-march=armv8.2-a+dotprod+i8mm+bf16",),
    ),
)
PLATFORMS = (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"))  # where a CPU's features are read
_SAME_MACHINE = {"arm64": "aarch64"}  # macOS's name: Linux's
_APPLE_FEATURES = {"FEAT_DotProd": "asimddp", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm"}  # sysctl's name: Linux's

_CPU_INFO = Path("/proc/cpuinfo")
_DIGEST_BYTES = hashlib.sha256().digest_size


def find_library() -> Path | None:
    """The library for these sources and this CPU, or None."""
    if not available_levels():
        return None
    name = library_name()  # once: all sources are read for it, at every start
    places = (folder / name for folder in (_cache_folder(), INSTALLED_FOLDER))
    return next((path for path in places if os.path.lexists(path)), None)  # not `exists`: links are to be refused


def cache_path() -> Path:
    """Where ``fastvlm build-kernels`` writes the library."""
    return _cache_folder() / library_name()


def installed_path() -> Path:
    """Where installation writes the library."""
    return INSTALLED_FOLDER / library_name()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fastvlm" / "kernels"


def library_name() -> str:
    """File name of the library for the current sources."""
    sources = (path.read_text("utf-8") for path in sorted(SOURCE_FOLDER.rglob("*.?pp")))
    levels = (word for level in compiled_levels() for word in (level.name, *sorted(level.needed), *level.flags))
    key = hashlib.sha256("\n".join((*sources, *COMPILER_FLAGS, *levels)).encode()).hexdigest()[:16]
    return f"kernels-{key}.so"


def compiled_levels(machine: str | None = None) -> tuple[Level, ...]:
    """The levels that a library for `machine` (this one by default) holds, from the least to the most."""
    machine = machine or platform.machine()
    return tuple(level for level in LEVELS if level.machine == _SAME_MACHINE.get(machine, machine))


def available_levels() -> tuple[str, ...]:
    """Names of the levels that this CPU can run, the best first; empty if it has none."""
    found = cpu_flags()
    return tuple(level.name for level in reversed(compiled_levels()) if found >= level.needed)


def chosen_levels() -> tuple[str, ...]:
    """The levels to use, the best first: the available ones, up to the one that FASTVLM_KERNELS names.

    Raises:
        UsageError: FASTVLM_KERNELS is not a level of this CPU.
    """
    available, asked = available_levels(), os.environ.get(SWITCH)
    if not asked:
        return available
    if asked == TORCH:
        return ()
    if asked not in available:
        raise UsageError(
            f"{SWITCH} is {asked!r}; expected one that this CPU can run: {', '.join((*available, TORCH))}."
        )
    return available[available.index(asked) :]


def cpu_flags() -> frozenset[str]:
    """Feature flags of this CPU in Linux's notation; empty elsewhere than on :data:`PLATFORMS`."""
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return frozenset({"asimd"} | {flag for name, flag in _APPLE_FEATURES.items() if _apple_has(name)})
    try:
        with _CPU_INFO.open(encoding="utf-8") as lines:
            found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(found.partition(":")[2].split())


def _apple_has(feature: str) -> bool:
    """True if macOS says that the CPU has this feature of Arm's."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    name = f"hw.optional.arm.{feature}".encode()
    failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return not failed and value.value == 1


def distrust(path: Path) -> str | None:
    """The reason not to trust the library at `path`; None if it and its folder belong to this user or root alone.

    Neither may be a link, or writable by others. The installation folder is not checked, because whoever can write
    there can change this module too. Systems without user ids are not checked.
    """
    if path.parent == INSTALLED_FOLDER or not hasattr(os, "getuid"):
        return None
    checked = (_distrusted(path.parent, stat.S_ISDIR, "folder"), _distrusted(path, stat.S_ISREG, "file"))
    return next(filter(None, checked), None)


def _distrusted(place: Path, is_kind: Callable[[int], bool], kind: str) -> str | None:
    try:
        found = place.lstat()
    except OSError as error:
        return f"{place} cannot be looked at: {error.strerror}"
    if not is_kind(found.st_mode):
        return f"{place} is not a {kind}, or is a link to one"
    if found.st_uid not in (0, os.getuid()):
        return f"{place} belongs to another user (id {found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{place} can be written by other users (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def sealed(library: bytes) -> bytes:
    """`library` as it is stored: with its digest appended, which the system's loader ignores."""
    return library + hashlib.sha256(library).digest()


def is_whole(content: bytes) -> bool:
    """True if `content` is an undamaged sealed library."""
    return sealed(content[:-_DIGEST_BYTES]) == content
