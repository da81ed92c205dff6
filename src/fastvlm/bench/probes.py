"""Peaks of this machine, measured between the contestants: multiply-adds by number type, and memory bandwidth."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.bench.compiled_peaks import CompiledPeaks
from fastvlm.bench.measuring import wait_for
from fastvlm.bench.worker import Measured

_MATRIX = 2048  # a side: 17 GFLOP a product, 8 MB in bfloat16
_PACKED_SHAPES = ((4096, 384, 1536), (16384, 192, 768), (2048, 2048, 2048))  # rows, in, out; two of them the encoder's
_STREAM_BYTES = 512 * 2**20  # beyond every cache
_ROW_WIDTH = 4096


def best_seconds(work: Callable[[], object], repeats: int = 3, device: str = "cpu") -> float:
    """Shortest of `repeats` runs in seconds, after a warm-up."""
    work()
    wait_for(device)
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        wait_for(device)
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


class MachineProbe:
    """Peaks of this CPU with this many threads, or of a GPU.

    Args:
        threads: of torch; 0 for the default.
        device: "cpu", "cuda".
    """

    def __init__(self, threads: int = 0, device: str = "cpu") -> None:
        self.device = device
        if threads:
            torch.set_num_threads(threads)
        self._stream: Tensor | None = None
        self._compiled: CompiledPeaks | None = None

    def open(self) -> Measured:
        """Report torch's threads and the GPU's name in `facts`; `value` has no meaning."""
        facts: dict[str, Any] = {"threads": torch.get_num_threads()}
        if self.device == "cpu":
            self._compiled = CompiledPeaks.compiled(torch.get_num_threads())
        if self.device.startswith("cuda"):
            facts["gpu"] = torch.cuda.get_device_name(self.device)
        return Measured(0.0, facts=facts)

    @torch.inference_mode()
    def multiply_adds(self) -> Measured:
        """Operations a second, the most of all number types; `parts` has each: "avx2 float32", "avx2 int8".

        They are of registers alone. Without a compiler, and on a GPU, they are of torch's products: "torch float32".
        """
        if self._compiled is not None:
            parts = self._compiled.multiply_adds()
        else:
            # bfloat16 takes a minute on a CPU that emulates it.
            has_bfloat16 = self.device != "cpu" or cpu_kernels().has_fast_bfloat16
            dtypes = (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)
            parts = {f"torch {str(dtype)[6:]}": self._products(dtype) for dtype in dtypes}
        return Measured(max(parts.values()), parts)

    @torch.inference_mode()
    def bandwidth(self) -> Measured:
        """Bytes per second of the fastest way to read memory; `parts` has each."""
        if self._stream is None:
            self._stream = torch.ones(_STREAM_BYTES // (4 * _ROW_WIDTH), _ROW_WIDTH, device=self.device)
        data, row = self._stream, torch.ones(_ROW_WIDTH, device=self.device)
        ways: dict[str, Callable[[], Any]] = {"sum": data.sum, "matrix_times_vector": lambda: data @ row}
        parts = {name: data.nbytes / best_seconds(way, device=self.device) for name, way in ways.items()}
        if self._compiled is not None:
            parts["compiled"] = self._compiled.read_bytes(data.data_ptr(), data.nbytes)
        return Measured(max(parts.values()), parts)

    def _products(self, dtype: torch.dtype) -> float:
        """The best rate of torch's products."""
        rates = [self._matmul(dtype)]
        with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):  # a torch without oneDNN
            rates += [self._packed(*shape, dtype) for shape in _PACKED_SHAPES if self.device == "cpu"]
        return max(rates)

    def _matmul(self, dtype: torch.dtype) -> float:
        side = _MATRIX if self.device == "cpu" else 4 * _MATRIX
        a, b = torch.randn(2, side, side).to(self.device, dtype)
        return 2 * side**3 / best_seconds(lambda: a @ b, device=self.device)

    @staticmethod
    def _packed(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
        x = torch.randn(rows, inner, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outer, inner, dtype=dtype), rows)
        seconds = best_seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
        return 2 * rows * inner * outer / seconds
