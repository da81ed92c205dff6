"""A linear layer's weight as the compiled kernels read it: in panels of outputs, and in those in steps of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PanelLayout:
    """Order of the numbers of a panel's step, which is a tensor of `sizes`.

    Attributes:
        sizes: sizes 0 and 2 together are the outputs of a panel, sizes 1 and 3 the inputs of a step.
        is_padded: a layer's outputs and inputs may be any, because the last panel and step have zeros.
    """

    sizes: tuple[int, int, int, int]
    is_padded: bool

    @property
    def outputs(self) -> int:
        """Outputs of a panel."""
        return self.sizes[0] * self.sizes[2]

    @property
    def inputs(self) -> int:
        """Inputs of a step."""
        return self.sizes[1] * self.sizes[3]

    def shape(self, outputs: int, inputs: int) -> tuple[int, ...]:
        """Shape of a packed weight: (panels, steps, *sizes)."""
        return -(-outputs // self.outputs), -(-inputs // self.inputs), *self.sizes

    def takes(self, outputs: int, inputs: int) -> bool:
        """True if a weight (outputs, inputs) can be packed so."""
        return self.is_padded or not (outputs % self.outputs or inputs % self.inputs)


@dataclass(frozen=True)
class PackedLayer:
    """A packed layer.

    Attributes:
        weight: as ``PanelLayout.shape`` says.
        bias: float32, with zeros to whole panels.
        outputs: of the layer.
        inputs: of the layer.
    """

    weight: Tensor
    bias: Tensor
    outputs: int
    inputs: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, layout: PanelLayout) -> PackedLayer:
        """The layer of a `weight` (outputs, inputs), whose dtype it keeps, and a `bias` (outputs,) of any dtype."""
        outputs, inputs = weight.shape
        panels, steps, *sizes = layout.shape(outputs, inputs)
        padded = weight
        if (panels * layout.outputs, steps * layout.inputs) != weight.shape:
            padded = weight.new_zeros(panels * layout.outputs, steps * layout.inputs)
            padded[:outputs, :inputs] = weight
        groups, rows, columns, depth = sizes
        parts = padded.reshape(panels, groups, columns, steps, rows, depth)
        whole_bias = torch.zeros(panels * layout.outputs)
        if bias is not None:
            whole_bias[:outputs] = bias
        return cls(parts.permute(0, 3, 1, 4, 2, 5).contiguous(), whole_bias, outputs, inputs)

    def dense(self) -> Tensor:
        """The weight (outputs, inputs)."""
        panels, steps, groups, rows, columns, depth = self.weight.shape
        whole = self.weight.permute(0, 2, 4, 1, 3, 5).reshape(panels * groups * columns, steps * rows * depth)
        return whole[: self.outputs, : self.inputs]
