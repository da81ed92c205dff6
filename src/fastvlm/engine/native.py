"""Kernels of our own for the encoder and the decoder, compiled once on this machine: an option, and never needed.

``fastvlm build-kernels`` compiles ``kernels/`` into the user's cache directory; from then on every engine uses what
lies there. Where nothing lies there, or something made from another source or for another CPU, torch's kernels do the
work, and nobody is told; where something damaged lies, they do it after a warning.

A library carries the SHA-256 of itself at its end, so that half of one is never loaded. It is searched for by its
source and this CPU, not by its compiler, which need not be there any more.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.engine.cpu import cpu_kernels

__all__ = [
    "COMPILER_FLAGS",
    "SOURCE_FOLDER",
    "NativeDepthwise",
    "NativeKernels",
    "cpu_flags",
    "library_path",
    "native_kernels",
    "open_library",
    "sealed",
]

SOURCE_FOLDER = Path(__file__).with_name("kernels")
# Whatever machine compiles it, the library needs NEEDED_FLAGS and nothing else.
COMPILER_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-march=x86-64-v4"),
    *("-mavx512bf16", "-mavx512vnni", "-mavx512vbmi", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
)
NEEDED_FLAGS = frozenset(  # as Linux calls them
    [f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl", "_bf16", "_vnni", "vbmi")]
    + ["amx_tile", "amx_bf16", "amx_int8"]
)
SWITCH = "FASTVLM_NATIVE_KERNELS"

_CPU_INFO = Path("/proc/cpuinfo")
_INTERFACE = 1  # of kernels/encoder.cpp
_BLOCK = 32  # channels that the depthwise kernel takes at a time: 16 even ones and 16 odd ones
_DIGEST_BYTES = hashlib.sha256().digest_size
_KERNEL_SIZES = (3, 7)


class NativeKernels:
    """The functions of an opened library, on contiguous bfloat16 tensors of the CPU; they use torch's threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
        self._gelu, self._depthwise = library.fastvlm_gelu, library.fastvlm_depthwise
        self._gelu.argtypes, self._gelu.restype = [pointer, ctypes.c_size_t, ctypes.c_int], None
        self._depthwise.argtypes = [*[pointer] * 4, *[size] * 4, ctypes.c_int, ctypes.c_int]
        self._depthwise.restype = ctypes.c_int
        self._product = library.fastvlm_product
        self._product.argtypes, self._product.restype = [pointer, pointer, pointer, size, ctypes.c_int], None
        self._decode = library.fastvlm_decode
        self._decode.argtypes = [*[pointer] * 4, size, ctypes.c_int, *[pointer] * 3, ctypes.c_int]
        self._decode.restype = None
        self.interface, self.has_threads = library.fastvlm_interface(), bool(library.fastvlm_has_threads())
        self.has_tiles = bool(library.fastvlm_may_use_tiles())

    @staticmethod
    def takes(x: Tensor) -> bool:
        """True if `x` is what these functions work on."""
        return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() and x.numel() > 0

    def gelu_(self, x: Tensor) -> Tensor:
        """Exact GELU, in place: off by rounding to bfloat16 and 1.5e-6 at most. `x` must be what :meth:`takes` says.

        NaN stays NaN, and minus infinity becomes it.
        """
        self._check(x)
        self._gelu(x.data_ptr(), x.numel(), torch.get_num_threads())
        return x

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
        """What :class:`NativeDepthwise` does; `weight` and `bias` are in its order."""
        self._check(x)
        y = torch.empty_like(x)
        pointers = (tensor.data_ptr() for tensor in (x, y, weight, bias))
        if self._depthwise(*pointers, *x.shape, kernel, torch.get_num_threads()):
            raise ValueError(f"kernel is {kernel}; expected one of {_KERNEL_SIZES}.")
        return y

    def multiply(self, product: Any, rows: Tensor, y: Tensor) -> None:
        """Put the results for `rows` (R, in) into `y` (R, out), both contiguous bfloat16; R is at least 1.

        `product` refers to a ``NativeProduct`` (:mod:`fastvlm.engine.native_linear`) of these sizes.
        """
        self._check(rows)
        self._product(product, rows.data_ptr(), y.data_ptr(), len(rows), torch.get_num_threads())

    def decode(
        self, model: Any, embeds: Tensor, places: Tensor, tables: Sequence[Tensor], results: Tensor, *, is_prompt: bool
    ) -> None:
        """Put what becomes of `embeds` (T, D) into `results`, both contiguous bfloat16; T is 1 to 512.

        Args:
            model: refers to a ``NativeModel`` (:mod:`fastvlm.engine.native_decoder`).
            places: (2, T) slots and positions, int64.
            tables: cosines and sines for all positions.
            results: of a prompt (tokens that follow one another in one slot) the last one's hidden state (1, D), else
                logits (T, V).
        """
        self._check(embeds)
        slots, positions = places.contiguous()
        pointers = (tensor.data_ptr() for tensor in (embeds, slots, positions))
        others = (tensor.data_ptr() for tensor in (*tables, results))
        self._decode(model, *pointers, len(embeds), is_prompt, *others, torch.get_num_threads())

    def _check(self, x: Tensor) -> None:
        if not self.takes(x):
            what = f"{x.dtype} on {x.device}, strides {x.stride()}, shape {tuple(x.shape)}"
            raise ValueError(f"x is {what}; expected a contiguous bfloat16 tensor of the CPU that is not empty.")


class NativeDepthwise:
    """A depthwise convolution of 3x3 or 7x7, stride 1, padded to its input's size; sums are float32.

    Args:
        kernels: of :func:`native_kernels`.
        weight: (C, 1, K, K), any floating dtype.
        bias: (C,), or None.
    """

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None) -> None:
        channels, self._kernel = len(weight), weight.shape[-1]
        blocks, taps = -(-channels // _BLOCK), self._kernel**2
        flat = weight.new_zeros(blocks * _BLOCK, taps + 1, dtype=torch.float32)
        flat[:channels, :taps] = weight.flatten(1)
        if bias is not None:
            flat[:channels, taps] = bias
        ordered = flat.view(blocks, _BLOCK // 2, 2, taps + 1).permute(0, 2, 3, 1)
        self._kernels = kernels
        self._weight, self._bias = ordered[:, :, :taps].contiguous(), ordered[:, :, taps].contiguous()

    @staticmethod
    def suits(weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], groups: int) -> bool:
        """True if a convolution of this `weight` (C_out, C_in / groups, K, K') is one of those."""
        channels, inputs, *size = weight.shape
        is_depthwise = inputs == 1 and channels == groups
        is_same = tuple(stride) == (1, 1) and size[0] == size[1] and tuple(padding) == (size[0] // 2,) * 2
        return is_depthwise and is_same and size[0] in _KERNEL_SIZES and weight.dtype == torch.bfloat16

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> a new tensor of the same shape; `x` must be what :meth:`NativeKernels.takes` says."""
        return self._kernels.depthwise(x, self._weight, self._bias, self._kernel)


@functools.cache
def native_kernels() -> NativeKernels | None:
    """The kernels of this machine, or None: not built, built for something else, damaged, or switched off.

    They are for CPUs with products in tile registers: there the passes that they shorten take as long as the products.
    """
    if os.environ.get(SWITCH) == "0" or not cpu_kernels().has_bfloat16_tiles:
        return None
    path = library_path()
    if path is None or not path.is_file():
        return None
    try:
        kernels = open_library(path)
    except (OSError, AttributeError, ValueError) as error:
        again = "Run: fastvlm build-kernels"
        warnings.warn(f"{path} cannot be used: {error}. torch's kernels work instead. {again}", stacklevel=2)
        return None
    return kernels if kernels.has_threads or torch.get_num_threads() == 1 else None


def library_path() -> Path | None:
    """Where the library for this source and this CPU is, or would be; None where there can be none."""
    flags = cpu_flags()
    if not flags >= NEEDED_FLAGS:
        return None
    sources = (path.read_text("utf-8") for path in sorted(SOURCE_FOLDER.iterdir()))
    parts = (*sources, *COMPILER_FLAGS, platform.machine(), *sorted(flags))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fastvlm" / "kernels" / f"kernels-{key}.so"


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


def open_library(path: Path) -> NativeKernels:
    """The kernels in the sealed library `path`, tried on a few numbers.

    Raises:
        OSError: it cannot be read or loaded.
        ValueError: it is damaged, or computes something else.
        AttributeError: a function is missing.
    """
    content = path.read_bytes()
    if sealed(content[:-_DIGEST_BYTES]) != content:
        raise ValueError("it is damaged: its digest is another one")
    kernels = NativeKernels(ctypes.CDLL(str(path)))
    if kernels.interface != _INTERFACE or not _is_right(kernels):
        raise ValueError("its results are wrong")
    return kernels


def _is_right(kernels: NativeKernels) -> bool:
    """True if the kernels give what torch gives, where every number fits bfloat16 or nearly so."""
    x = (torch.arange(4 * 5 * 33) % 17 / 4 - 2).reshape(1, 4, 5, 33).bfloat16()
    if not torch.allclose(kernels.gelu_(x.clone()).float(), F.gelu(x.float()), rtol=1e-2, atol=1e-5):
        return False
    for size in _KERNEL_SIZES:
        weight = (torch.arange(33 * size * size) % 5 / 4 - 0.5).reshape(33, 1, size, size)
        bias = torch.arange(33) / 8
        expected = F.conv2d(x.float().permute(0, 3, 1, 2), weight, bias, 1, size // 2, groups=33).permute(0, 2, 3, 1)
        result = NativeDepthwise(kernels, weight, bias)(x).float()
        if not torch.allclose(result, expected, rtol=1e-2, atol=1e-5):
            return False
    return True
