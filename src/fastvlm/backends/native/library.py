"""Where the library of compiled kernels is, and what it is made of and for. Nothing of torch is imported here.

It is looked for in the user's cache directory, where ``fastvlm build-kernels`` puts it, and then beside this module,
where installing puts it if there is a compiler (``hatch_build.py``). Its name is a hash of its sources and flags, so
what an older fastvlm made is not looked at; whatever machine compiles it, it runs where :data:`NEEDED_FLAGS` are.

A library carries the SHA-256 of itself at its end, so that half of one is never loaded. Its name can be predicted, so
it is loaded only if no other user can have put it there: see :func:`distrust`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "COMPILER_FLAGS",
    "NEEDED_FLAGS",
    "SOURCE_FOLDER",
    "cache_path",
    "cpu_flags",
    "distrust",
    "find_library",
    "installed_path",
    "is_whole",
    "library_name",
    "sealed",
]

SOURCE_FOLDER = Path(__file__).with_name("cpp")
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
    places = (folder / name for folder in (_cache_folder(), INSTALLED_FOLDER))
    return next((path for path in places if os.path.lexists(path)), None)  # not `exists`: links are to be refused


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


def distrust(path: Path) -> str | None:
    """Why the library at `path` may be somebody else's; None if it and its folder are this user's or root's alone.

    Neither may be a link, or be written by others. Not asked of what installing left: who can write there can change
    this module too. Nor on systems without users' ids.
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
        return f"{place} is no {kind}, or a link to one"
    if found.st_uid not in (0, os.getuid()):
        return f"{place} belongs to another user (id {found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{place} can be written by other users (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def sealed(library: bytes) -> bytes:
    """`library` as it is stored: with its digest behind it, which the system's loader does not mind."""
    return library + hashlib.sha256(library).digest()


def is_whole(content: bytes) -> bool:
    """True if `content` is a sealed library, undamaged."""
    return sealed(content[:-_DIGEST_BYTES]) == content
