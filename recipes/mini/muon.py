"""Muon: momentum whose step is made orthogonal, for the matrices of the decoder.

Keller Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024; the scale that lets it share
AdamW's learning rate is that of "Muon is Scalable for LLM Training" (arXiv 2502.16982, section 2.2). PyTorch's own
computes in bfloat16 on every CPU, which those without bfloat16 arithmetic do many times slower than float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The quintic of Jordan's Newton-Schulz iteration: singular values end between 0.7 and 1.2.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
RMS_OF_ADAMW = 0.2


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) float32 -> the nearest matrices of orthonormal rows (or columns), roughly.

    In bfloat16 where the CPU has that arithmetic: half the time, and nearer than the iteration's own error.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if torch.cpu._is_avx512_bf16_supported():
        x = x.bfloat16()
    first, second, third = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = first * x + (second * gram + third * gram @ gram) @ x
    return (x.mT if is_tall else x).float()


class Muon(torch.optim.Optimizer):
    """For parameters of two dimensions; those of one shape are made orthogonal together."""

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a `closure` is never called."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for alike in by_shape.values():
                self._update(alike, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        looked_ahead = []
        for parameter in parameters:
            state = self.state[parameter]
            gradient = parameter.grad
            assert gradient is not None
            average = state.setdefault("momentum", torch.zeros_like(parameter))
            average.lerp_(gradient, 1 - group["momentum"])
            looked_ahead.append(gradient.lerp(average, group["momentum"]))
        rows, columns = parameters[0].shape
        rate = group["lr"] * RMS_OF_ADAMW * max(rows, columns) ** 0.5
        for parameter, direction in zip(parameters, orthogonal(torch.stack(looked_ahead)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-rate)
