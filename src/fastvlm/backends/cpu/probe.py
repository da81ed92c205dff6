"""Probes which kernels this CPU and this build of torch support, so that every kernel has a fallback.

Nothing is probed at import; the first call of :func:`cpu_kernels` takes about a millisecond.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvlm.formats.rounding import pack_int4


@dataclass(frozen=True)
class CpuKernels:
    """Kernels that work here and give the right numbers.

    Attributes:
        has_packed_float32: oneDNN linears with weights packed once, float32.
        has_packed_bfloat16: the same for bfloat16.
        has_fast_bfloat16: bfloat16 dot products in hardware (AVX512-BF16 or AMX); without, bfloat16 is emulated and
            slower than float32.
        has_packed_int8: oneDNN linears of uint8 activations and int8 weights, with VNNI or AMX. Without these
            oneDNN adds pairs of products in 16 bits, which overflow silently (pytorch issue 103646).
        int4_block: outputs that the grouped int4 kernel packs together: 64 (AVX-512) or 32 (AVX2); 0 if there is no
            such kernel, or its layout is not known here.
        has_fast_plain_float32: ``F.linear`` multiplies many rows in float32 faster than packed weights do (AVX2 with
            MKL; docs/performance.md).
        has_bfloat16_tiles: bfloat16 products in tile registers (AMX), so fast that what is done to their results costs
            as much as they do.
    """

    has_packed_float32: bool
    has_packed_bfloat16: bool
    has_fast_bfloat16: bool
    has_packed_int8: bool
    int4_block: int
    has_fast_plain_float32: bool
    has_bfloat16_tiles: bool

    @property
    def many_rows_dtype(self) -> torch.dtype:
        """Dtype of dequantized weights for many rows: bfloat16 where the CPU multiplies it, else float32."""
        return torch.bfloat16 if self.has_fast_bfloat16 else torch.float32

    def has_packed(self, dtype: torch.dtype) -> bool:
        """True if packed linears of this dtype work here."""
        return {torch.float32: self.has_packed_float32, torch.bfloat16: self.has_packed_bfloat16}.get(dtype, False)

    def has_tiles(self, dtype: torch.dtype) -> bool:
        """True if matrix products of this dtype use tile registers."""
        return dtype == torch.bfloat16 and self.has_bfloat16_tiles


@functools.cache
def cpu_kernels() -> CpuKernels:
    """The kernels of this process; the environment variable ``ATEN_CPU_CAPABILITY`` counts, as it does for torch."""
    capability = torch.backends.cpu.get_cpu_capability()
    is_avx512 = capability == "AVX512"
    blocks = {"AVX512": (64,), "AVX2": (32,)}.get(capability, ())
    has_amx, has_vnni = torch.cpu._is_amx_tile_supported(), torch.cpu._is_vnni_supported()
    has_packed_bfloat16 = is_avx512 and _works(lambda: _packed_linear_gap(torch.bfloat16))
    return CpuKernels(
        has_packed_float32=_works(lambda: _packed_linear_gap(torch.float32)),
        has_packed_bfloat16=has_packed_bfloat16,
        has_fast_bfloat16=torch.cpu._is_avx512_bf16_supported() or has_amx,
        has_packed_int8=(has_vnni or has_amx) and _works(_packed_int8_gap),
        int4_block=next((block for block in blocks if _works(functools.partial(_int4_layout_gap, block))), 0),
        has_fast_plain_float32=capability == "AVX2" and torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        has_bfloat16_tiles=has_packed_bfloat16 and has_amx,
    )


def _works(gap: Callable[[], float]) -> bool:
    """True if `gap` returns (largest relative error) less than a hundredth; False if the operator is not there."""
    try:
        return gap() < 1e-2
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def _relative_gap(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected.float()).abs().max() / expected.float().abs().max())


def _ramp(rows: int, columns: int) -> Tensor:
    """Whole numbers from -7 to 8 (rows, columns), float32, every row different."""
    return ((torch.arange(rows * columns) * 7) % 16 - 7).reshape(rows, columns).float()


def _packed_linear_gap(dtype: torch.dtype) -> float:
    x, weight = _ramp(3, 32).to(dtype), _ramp(16, 32).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    result = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return _relative_gap(result, x.float() @ weight.float().T)


def _packed_int8_gap() -> float:
    x, weight = torch.full((2, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zero_points = torch.ones(16), torch.zeros(16, dtype=torch.long)
    result = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return _relative_gap(result, (x.float() - 128) @ weight.float().T)


def _int4_layout_gap(block: int) -> float:
    """0 if the kernel packs `block` outputs together as ``formats/rounding.py`` says, and multiplies right."""
    values = (torch.arange(128 * 64) * 2_654_435_761 // 65_536 % 16).reshape(128, 64)  # no two rows are equal
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.int(), 1)
    if not torch.equal(packed, pack_int4(values.to(torch.uint8), block)):
        return 1.0
    x, scales_and_zeros = _ramp(2, 64).bfloat16(), torch.tensor([1.0, 0.0]).bfloat16().expand(2, 128, 2).contiguous()
    result = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales_and_zeros)
    return _relative_gap(result, x.float() @ (values.float() - 8).T)
