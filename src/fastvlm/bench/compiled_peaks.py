"""Multiply-add and reading rates of this CPU by a small C++ program (``peaks.cpp``), compiled when it is needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastvlm.backends.native.library import cpu_flags

SOURCE = Path(__file__).with_name("peaks.cpp")
_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
_TIMEOUT_S = 60.0
_WINDOW_S = 0.05  # of one measurement
_REPEATS = 5
# Level and number type -> what the CPU must have, as Linux calls it.
_NEEDED = {
    "avx2 float32": {"avx2", "fma"},
    "avx2 int8": {"avx2"},
    "avx2vnni int8": {"avx2", "avx_vnni"},
    "avx512 float32": {"avx512f"},
    "avx512 bfloat16": {"avx512_bf16"},
    "avx512 int8": {"avx512_vnni"},
    "amx bfloat16": {"amx_tile", "amx_bf16"},
    "amx int8": {"amx_tile", "amx_int8"},
    "neon float32": {"asimd"},
    "neon int8": {"asimddp"},
}


class CompiledPeaks:
    """The program's functions.

    Args:
        library: the compiled program.
        threads: that compute at the same time.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library, self._threads = library, threads

    @classmethod
    def compiled(cls, threads: int) -> CompiledPeaks | None:
        """Compile and load it; None without a compiler, or on a CPU for which it has no functions."""
        named = os.environ.get("CXX")
        compiler = next(filter(None, map(shutil.which, (named,) if named else _COMPILERS)), None)
        if compiler is None:
            return None
        with tempfile.TemporaryDirectory(prefix="fastvlm-peaks-") as folder:
            made = Path(folder) / "peaks.so"
            try:
                subprocess.run(  # noqa: S603  # the compiler of this user's PATH or CXX
                    [compiler, *_FLAGS, str(SOURCE), "-o", str(made)],
                    check=True,
                    capture_output=True,
                    timeout=_TIMEOUT_S,
                )
                library = ctypes.CDLL(str(made))
                library.fastvlm_read  # noqa: B018  # AttributeError on another CPU
            except (OSError, AttributeError, subprocess.SubprocessError):
                return None
        return cls(library, threads)

    def multiply_adds(self) -> dict[str, float]:
        """Level and number type, such as "avx2 int8" -> operations a second of all threads; a multiply-add is two."""
        flags = cpu_flags() | ({"asimd", "asimddp"} if hasattr(self._library, "fastvlm_peak_neon_float32") else set())
        found = {}
        for name, needed in _NEEDED.items():
            function = getattr(self._library, f"fastvlm_peak_{name.replace(' ', '_')}", None)
            if function is None or not needed <= flags:
                continue
            if name.startswith("amx") and not self._library.fastvlm_may_use_tiles():
                continue
            function.argtypes, function.restype = [ctypes.c_long], ctypes.c_double
            found[name] = self._rate(function)
        return found

    def read_bytes(self, address: int, num_bytes: int) -> float:
        """Bytes a second of all threads, each reading its part of `num_bytes` at `address`."""
        read = self._library.fastvlm_read
        read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t], None
        part = num_bytes // self._threads
        return self._best(lambda number: read(address + number * part, part), float(part))

    def _rate(self, function: Callable[[int], float]) -> float:
        count, seconds = 1000, 0.0
        while seconds < _WINDOW_S:
            count *= 2
            start_s = time.perf_counter()
            operations = function(count)
            seconds = time.perf_counter() - start_s
        return self._best(lambda _: function(count), operations)

    def _best(self, work: Callable[[int], object], amount: float) -> float:
        """`amount` of each thread over the shortest time of a few repetitions."""
        times_s = []
        with ThreadPoolExecutor(self._threads) as threads:
            for _ in range(_REPEATS):
                start_s = time.perf_counter()
                list(threads.map(work, range(self._threads)))
                times_s.append(time.perf_counter() - start_s)
        return amount * self._threads / min(times_s)
