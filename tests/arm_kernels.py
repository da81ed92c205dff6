"""Compiled kernels for 64-bit Arm, called from tests on another machine: a cross-compiler and qemu-user run them.

The functions get the addresses of this process's tensors. ``arm/driver.cpp``, which runs in qemu, fetches each page
that they touch and sends what has changed back.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.backends.native.library import Level

__all__ = ["COMPILER", "MACHINE", "MISSING", "ArmLibrary"]

MACHINE = "aarch64"
COMPILER = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"
_PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", QEMU: "qemu-user"}
MISSING = " ".join(package for program, package in _PACKAGES.items() if shutil.which(program) is None)

_PLAIN_CPU = "cortex-a57"  # what ARMv8-A has, and no more
_DRIVER = Path(__file__).with_name("arm") / "driver.cpp"
_PAGE_BYTES = 4096
_NUM_INTEGERS, _NUM_FLOATS = 24, 8
_REQUEST, _REPLY = struct.Struct(f"=64sq{_NUM_INTEGERS}Q{8 * _NUM_FLOATS}s"), struct.Struct("=QQ")
_DONE, _WANTED, _CHANGED, _MISSING = range(4)


@functools.cache
def _driver() -> Path:
    """The compiled driver, removed at exit."""
    folder = tempfile.TemporaryDirectory()
    weakref.finalize(_driver, folder.cleanup)
    made = Path(folder.name) / "driver"
    command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", str(_DRIVER), "-o", str(made), "-ldl"]
    subprocess.run(command, check=True)
    return made


@functools.cache
def _sysroot() -> Path:
    """Where the system libraries for Arm are."""
    found = subprocess.run([COMPILER, "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip()).resolve().parent.parent


class ArmFunction:
    """A function of the library; it has what ``ctypes`` functions have."""

    def __init__(self, library: ArmLibrary, name: str) -> None:
        self._library, self._name = library, name
        self.argtypes: list[Any] = []
        self.restype: Any = ctypes.c_int

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != len(self.argtypes):
            raise TypeError(f"{self._name} got {len(arguments)} arguments; expected {len(self.argtypes)}.")
        integers, floats = [], []
        for kind, value in zip(self.argtypes, arguments, strict=True):
            if kind in (ctypes.c_float, ctypes.c_double):
                floats.append(bytes(kind(value)).ljust(8, b"\0"))
            else:
                integers.append(_integer(kind, value))
        result = self._library.call(self._name, integers, b"".join(floats))
        return None if self.restype is None else self.restype(result).value


def _integer(kind: Any, value: Any) -> int:
    """The argument as the register holds it."""
    if value is None:
        return 0
    if hasattr(value, "_obj"):  # ctypes.byref
        return ctypes.addressof(value._obj)
    if isinstance(value, ctypes.Array | ctypes.Structure):
        return ctypes.addressof(value)
    if isinstance(value, ctypes._Pointer):
        return ctypes.cast(value, ctypes.c_void_p).value or 0
    return (kind(int(value)).value or 0) % 2**64


class ArmLibrary:
    """A library of kernels that runs in qemu; in the place of a ``ctypes.CDLL``."""

    def __init__(self, path: Path, level: Level) -> None:
        cpu = _PLAIN_CPU if level.needed <= {"fp", "asimd"} else "max"
        command = [QEMU, "-cpu", cpu, "-L", str(_sysroot()), str(_driver()), str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, _end, self._process)
        self._memory = os.open("/proc/self/mem", os.O_RDONLY)
        weakref.finalize(self, os.close, self._memory)

    def __getattr__(self, name: str) -> ArmFunction:
        if name.startswith("_") or self._asked(name, is_call=False) is None:
            raise AttributeError(name)
        return ArmFunction(self, name)

    def call(self, name: str, integers: list[int], floats: bytes) -> int:
        """What the function returns."""
        result = self._asked(name, integers, floats, is_call=True)
        assert result is not None
        return result

    def _asked(self, name: str, integers: list[int] | None = None, floats: bytes = b"", *, is_call: bool) -> int | None:
        padded = [*(integers or []), *[0] * (_NUM_INTEGERS - len(integers or []))]
        self._send(_REQUEST.pack(name.encode(), is_call, *padded, floats.ljust(8 * _NUM_FLOATS, b"\0")))
        sent: dict[int, bytes] = {}
        while True:
            kind, value = _REPLY.unpack(self._received(_REPLY.size))
            if kind == _WANTED:
                sent[value] = self._page(name, value)
                self._send(sent[value])
            elif kind == _CHANGED:
                _write_changes(value, sent[value], self._received(_PAGE_BYTES))
            else:
                return value if kind == _DONE else None

    def _page(self, name: str, address: int) -> bytes:
        try:
            return os.pread(self._memory, _PAGE_BYTES, address)
        except (OSError, OverflowError) as error:
            self._process.kill()
            raise AssertionError(f"{name} touched {address:#x}, which is no memory of this process") from error

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(content)
        self._process.stdin.flush()

    def _received(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        assert len(content) == size, f"the driver ended with {self._process.wait()}"
        return content


def _write_changes(address: int, before: bytes, after: bytes) -> None:
    """Write what the kernels changed, and nothing else: this process may have used the rest of the page since."""
    page = np.ctypeslib.as_array((ctypes.c_uint8 * _PAGE_BYTES).from_address(address))
    new = np.frombuffer(after, np.uint8)
    is_new = new != np.frombuffer(before, np.uint8)
    page[is_new] = new[is_new]


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()
