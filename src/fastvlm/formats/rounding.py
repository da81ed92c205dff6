"""8- and 4-bit weights: rounding and storage layout. Contains no kernels.

8 bits: ``w ~ values * scale`` with values in -127..127 and one scale per output channel. The error of a weight is at
most half its channel's scale.

4 bits: ``w ~ (value - 8) * scale + zero`` with values in 0..15, and a scale and a zero per group of inputs of each
output channel. The error of a weight is at most half its group's scale, plus the rounding of scale and zero to
bfloat16. Layout of the packed values: blocks of 64 outputs; in a block, 32 bytes for each input, byte j holding output
j in its low half and output j + 32 in its high half. torch's AVX-512 kernel reads this order, so a file is used without
repacking; the AVX2 kernel needs blocks of 32 outputs (:meth:`Int4Weight.in_blocks`). Outputs are padded to a multiple
of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.errors import CheckpointError

GROUP_SIZES = (32, 64, 128)
FILE_BLOCK = 64  # outputs that are packed together in files
MIDDLE, LARGEST_4 = 8, 15
LARGEST_8 = 127  # -128 is left out, so that the range is symmetric


@dataclass(frozen=True)
class Int8Weight:
    """`values` (out, in) int8 in -127..127 and `scales` (out,) float32: the weight is ``values * scales[:, None]``.

    Raises:
        CheckpointError: tensors of other dtypes or shapes; kernels do not check them.
    """

    values: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        _check("values", self.values, torch.int8, None, None)
        _check("scales", self.scales, torch.float32, self.out_features)

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.values.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are stored in a file."""
        return {"values": self.values, "scales": self.scales}

    def dequantize(self) -> Tensor:
        """The weight (out, in) in float32."""
        return self.values.float() * self.scales[:, None]


@dataclass(frozen=True)
class Int4Weight:
    """A weight (out, in) in groups of `group_size` inputs.

    Attributes:
        packed: uint8 (out padded to a multiple of 64, in / 2), laid out as the module says.
        scales_and_zeros: bfloat16 (in / group_size, out padded, 2).
        out_features: outputs without the padding.
        block: outputs that are packed together: 64 in files, 32 for the AVX2 kernel.

    Raises:
        CheckpointError: tensors of other dtypes or shapes. Kernels read as far as these say, without a check.
    """

    packed: Tensor
    scales_and_zeros: Tensor
    out_features: int
    block: int = FILE_BLOCK

    def __post_init__(self) -> None:
        padded = -(-self.out_features // FILE_BLOCK) * FILE_BLOCK
        _check("packed", self.packed, torch.uint8, padded, None)
        groups = {self.in_features // size for size in GROUP_SIZES if self.in_features % size == 0}
        found = self.scales_and_zeros.shape[0] if self.scales_and_zeros.dim() else 0
        if found not in groups:
            raise CheckpointError(
                f"scales_and_zeros has the shape {list(self.scales_and_zeros.shape)} for {self.in_features} inputs; "
                f"expected one of {sorted(groups)} groups first, of {', '.join(map(str, GROUP_SIZES))} inputs each."
            )
        _check("scales_and_zeros", self.scales_and_zeros, torch.bfloat16, found, padded, 2)

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.packed.shape[1] * 2

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scales_and_zeros.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of values, scales and zeros."""
        return self.packed.nbytes + self.scales_and_zeros.nbytes

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are stored in a file."""
        return {"packed": self.packed, "scales_and_zeros": self.scales_and_zeros}

    def in_blocks(self, block: int) -> Int4Weight:
        """The same values with `block` outputs (64 or 32) packed together; itself if they already are."""
        if block == self.block:
            return self
        values = torch.cat(
            [self._nibbles(start, start + self.block) for start in range(0, len(self.packed), self.block)]
        )
        return Int4Weight(pack_int4(values, block), self.scales_and_zeros, self.out_features, block)

    def dequantize(self) -> Tensor:
        """The weight (out, in) in bfloat16."""
        return self.columns(0, self.packed.shape[0])[:, : self.out_features].T.contiguous()

    def values(self) -> Tensor:
        """Values 0..15, uint8 (out, in)."""
        starts = range(0, len(self.packed), self.block)
        return torch.cat([self._nibbles(start, start + self.block) for start in starts])[: self.out_features]

    def columns(self, start: int, end: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Outputs `start` to `end` (multiples of 64) of the transposed weight (in, end - start) in `dtype`."""
        half = self.block // 2
        blocks = self.packed[start:end].reshape(-1, self.in_features, half).transpose(0, 1)
        values = torch.empty(self.in_features, blocks.shape[1], self.block, dtype=dtype)
        values[..., :half] = blocks & 15
        values[..., half:] = blocks >> 4
        # Contiguous: `addcmul` is three times slower with a stride of two.
        scales, zeros = (t.to(dtype).contiguous() for t in self.scales_and_zeros[:, None, start:end].unbind(-1))
        grouped = values.reshape(scales.shape[0], -1, end - start).sub_(MIDDLE)
        return torch.addcmul(zeros, grouped, scales).reshape(self.in_features, -1)

    def _nibbles(self, start: int, end: int) -> Tensor:
        """Values 0..15, uint8 (end - start, in), of the block of outputs from `start` to `end`."""
        block = self.packed[start:end].reshape(self.in_features, -1)
        return torch.cat([block & 15, block >> 4], dim=1).T


RoundedWeight = Int8Weight | Int4Weight


def _check(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """Raise unless `tensor` is contiguous, of this `dtype` and `shape`, where None is any size but 0."""
    has_shape = tensor.dim() == len(shape) and all(
        size > 0 and expected in (None, size) for size, expected in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype != dtype or not has_shape or not tensor.is_contiguous():
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        found = f"{tensor.dtype} of shape {list(tensor.shape)}{'' if tensor.is_contiguous() else ' with gaps'}"
        raise CheckpointError(f"{name} is {found}; expected {dtype} of shape [{expected}].")


def quantize_int8(weight: Tensor, scale_dtype: torch.dtype = torch.float32) -> Int8Weight:
    """`weight` (out, in), any floating dtype, rounded to the nearest; the error is at most half a scale.

    Scales are numbers of `scale_dtype`, for files that store them so.
    """
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * LARGEST_8) / LARGEST_8
    scales = scales.to(scale_dtype).float()
    values = (weight / scales[:, None]).round_().clamp_(-LARGEST_8, LARGEST_8)
    return Int8Weight(values.to(torch.int8).contiguous(), scales)


def quantize_int4(weight: Tensor, group_size: int = 32) -> Int4Weight:
    """`weight` (out, in) of any floating dtype; `in` is a multiple of `group_size`, one of 32, 64 and 128."""
    out_features, in_features = weight.shape
    groups = F.pad(weight.detach().float(), (0, 0, 0, -out_features % FILE_BLOCK)).reshape(
        -1, in_features // group_size, group_size
    )
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scales = ((high - low) / LARGEST_4).clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16().float()
    zeros = (low + MIDDLE * scales).bfloat16().float()
    values = ((groups - zeros) / scales).round_().add_(MIDDLE).clamp_(0, LARGEST_4).to(torch.uint8)
    scales_and_zeros = torch.cat([scales, zeros], -1).transpose(0, 1).bfloat16().contiguous()
    return Int4Weight(pack_int4(values.reshape(-1, in_features)), scales_and_zeros, out_features)


def quantize_int4_symmetric(weight: Tensor, group_size: int = 32) -> Int4Weight:
    """As :func:`quantize_int4` with zeros of 0, for formats that have none: values 1..15 about the middle."""
    out_features, in_features = weight.shape
    groups = F.pad(weight.detach().float(), (0, 0, 0, -out_features % FILE_BLOCK)).reshape(
        -1, in_features // group_size, group_size
    )
    scales = groups.abs().amax(-1, keepdim=True) / (MIDDLE - 1)
    scales = scales.clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16().float()
    values = (groups / scales).round_().clamp_(1 - MIDDLE, MIDDLE - 1).add_(MIDDLE).to(torch.uint8)
    return int4_from_values(values.reshape(-1, in_features)[:out_features], scales[:out_features, :, 0])


def int4_from_values(values: Tensor, scales: Tensor) -> Int4Weight:
    """The weight of symmetric values, uint8 (out, in) 0..15 about 8, with `scales` (out, in / group size)."""
    out_features = len(values)
    rows = (0, 0, 0, -out_features % FILE_BLOCK)
    padded = F.pad(scales.float(), rows, value=1.0).T.bfloat16()
    scales_and_zeros = torch.stack([padded, torch.zeros_like(padded)], -1).contiguous()
    return Int4Weight(pack_int4(F.pad(values, rows, value=MIDDLE)), scales_and_zeros, out_features)


def pack_int4(values: Tensor, block: int = FILE_BLOCK) -> Tensor:
    """uint8 (out, in / 2) in the module's layout of `values` (out, in), 0..15; `out` is a multiple of `block`."""
    blocks = values.reshape(-1, 2, block // 2, values.shape[1])
    return (blocks[:, 0] | blocks[:, 1] << 4).transpose(1, 2).reshape(values.shape[0], -1).contiguous()
