"""Where the library of compiled kernels is, and what it is made of and for. Nothing of torch is imported here.

It is looked for in the user's cache directory, where ``fastvlm build-kernels`` puts it, and then beside this module,
where installing puts it if there is a compiler (``hatch_build.py``). Its name is a hash of its sources and flags, so
what an older fastvlm made is not looked at; whatever machine compiles it, it runs where :data:`NEEDED_FLAGS` are.

A library carries the SHA-256 of itself at its end, so that half of one is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

__all__ = [
    "COMPILER_FLAGS",
    "NEEDED_FLAGS",
    "SOURCE_FOLDER",
    "cache_path",
    "cpu_flags",
    "find_library",
    "installed_path",
    "is_whole",
    "library_name",
    "sealed",
]

SOURCE_FOLDER = Path(__file__).with_name("kernels")
INSTALLED_FOLDER = Path(__file__).with_name("built")
COMPILER_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-march=x86-64-v4"),
    *("-mavx512bf16", "-mavx512vnni", "-mavx512vbmi", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
)
NEEDED_FLAGS = frozenset(  # as Linux calls them
    [
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "avx512vbmi"),
        *("amx_tile", "amx_bf16", "amx_int8"),
    ]
)

_CPU_INFO = Path("/proc/cpuinfo")
_DIGEST_BYTES = hashlib.sha256().digest_size


def find_library() -> Path | None:
    """The library for these sources and this CPU; None if there is none."""
    if not cpu_flags() >= NEEDED_FLAGS:
        return None
    name = library_name()  # once: all sources are read for it, at every start
    return next((path for folder in (_cache_folder(), INSTALLED_FOLDER) if (path := folder / name).is_file()), None)


def cache_path() -> Path:
    """Where ``fastvlm build-kernels`` puts it."""
    return _cache_folder() / library_name()


def installed_path() -> Path:
    """Where installing puts it."""
    return INSTALLED_FOLDER / library_name()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fastvlm" / "kernels"


def library_name() -> str:
    """File name of the library that is made of the sources as they are now."""
    sources = (path.read_text("utf-8") for path in sorted(SOURCE_FOLDER.glob("*.?pp")))
    key = hashlib.sha256("\n".join((*sources, *COMPILER_FLAGS, platform.machine())).encode()).hexdigest()[:16]
    return f"kernels-{key}.so"


def cpu_flags() -> frozenset[str]:
    """What this CPU can do, in Linux's words; empty on other systems."""
    try:
        with _CPU_INFO.open(encoding="utf-8") as lines:
            found = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(found.partition(":")[2].split())


def sealed(library: bytes) -> bytes:
    """`library` as it is stored: with its digest behind it, which the system's loader does not mind."""
    return library + hashlib.sha256(library).digest()


def is_whole(content: bytes) -> bool:
    """True if `content` is a sealed library, undamaged."""
    return sealed(content[:-_DIGEST_BYTES]) == content
