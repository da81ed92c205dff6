"""Linear layers for inference: their interface, and the plain PyTorch layer.

Shapes: a weight is (out, in), a bias (out,), inputs are (..., in), outputs (..., out) in the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "gelu"]


class Linear(Protocol):
    """A linear layer for inference."""

    @property
    def num_bytes(self) -> int:
        """Memory of the weight that belongs to this layer alone."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(..., in) -> (..., out)."""


class LinearMaker(Protocol):
    """Makes linear layers from a checkpoint's weights without modifying them."""

    def __call__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:
        """One layer of several weights over the same input; the outputs are concatenated.

        Args:
            weights: (out, in) each, of any floating dtype.
            biases: (out,) or None for each weight; all or none are given.
            is_head: True for the output projection, which is more sensitive to rounding.
        """


class PlainLinear:
    """``F.linear``, optionally with exact GELU, on any device and floating dtype; the reference for other layers.

    Computes in the weight's dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        self.weight, self.activation = weight.detach(), activation
        self.bias = None if bias is None else bias.detach().to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return (F.gelu(y) if self.activation == "gelu" else y).to(x.dtype)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out) plus the outputs; `other` may be overwritten."""
        return other.add_(self(x))

    @property
    def num_bytes(self) -> int:
        """Memory of the weight in bytes."""
        return self.weight.nbytes

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        return self.weight


def plain_linears(device: torch.device, dtype: torch.dtype) -> LinearMaker:
    """A maker of :class:`PlainLinear` on `device` in `dtype`."""

    def make(weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:  # noqa: ARG001
        here = [weight.detach().to(device, dtype) for weight in weights]
        return PlainLinear(joined(here), joined_biases([None if b is None else b.to(device, dtype) for b in biases]))

    return make


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The concatenation of `parts`; a single one without a copy."""
    return parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])


def joined_biases(biases: Sequence[Tensor | None]) -> Tensor | None:
    """The concatenation of all biases; None if there are none."""
    given = [bias for bias in biases if bias is not None]
    return joined(given) if given else None
