"""Linear layers for tests, the measure of their results, and a CPU without any of the fast kernels."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastvlm.backends.cpu.probe import CpuKernels

NO_KERNELS = CpuKernels(**dict.fromkeys([field.name for field in dataclasses.fields(CpuKernels)], False))


def layer(rows: int, inputs: int, outputs: int, dtype=torch.float32, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias that give outputs of about one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return x.to(dtype), weight.to(dtype), torch.randn(outputs, generator=generator).to(dtype)


def relative_gap(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return ((result.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()
