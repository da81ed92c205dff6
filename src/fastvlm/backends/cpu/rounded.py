"""Linear layers of weights that were rounded before, for a decoder: see ``formats/quantized_file.py`` for their file.

The file is mapped into memory, not read: 4-bit weights are used where they lie if the kernel reads them so, 8-bit ones
are used where they lie or laid out once for the kernel. Norms, biases and the embedding come from the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.backends.cpu.int4 import int4_linear
from fastvlm.backends.cpu.int8 import int8_linear
from fastvlm.backends.cpu.linear import Linear, LinearFactory
from fastvlm.backends.native.linear import native_linear
from fastvlm.errors import CheckpointError
from fastvlm.formats.quantized_file import QuantizedWeights
from fastvlm.formats.rounding import Int8Weight, RoundedWeight

__all__ = ["rounded_linear", "stored_linears"]


def rounded_linear(weight: RoundedWeight, bias: Tensor | None, dtype: torch.dtype | None = None) -> Linear:
    """The layer of a rounded weight; `dtype` is that of its inputs, if it is known."""
    native = native_linear([weight], [bias]) if dtype == torch.bfloat16 else None
    if native is not None:
        return native
    return int8_linear(weight, bias) if isinstance(weight, Int8Weight) else int4_linear(weight, bias)


def stored_linears(quantized: QuantizedWeights, dtype: torch.dtype | None = None) -> LinearFactory:
    """A factory for one decoder: gives the stored weights in the order in which it asks, whatever the values it gets.

    `dtype` is what the decoder computes in, if that is known.
    It raises CheckpointError if the decoder asks for other shapes, or for more layers, than are stored.
    """
    remaining = iter((*quantized.weights[-1:], *quantized.weights[:-1]))  # the decoder asks for the head first

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        stored = next(remaining, None)
        shape = None if stored is None else (stored.out_features, stored.in_features)
        if stored is None or shape != tuple(weight.shape):
            raise CheckpointError(
                f"The decoder asks for a layer of {list(weight.shape)}; the quantized weights have "
                f"{'no more' if shape is None else list(shape)} there. They are another model's, or another "
                "version's. Quantize the model again."
            )
        return rounded_linear(stored, bias, dtype)

    return make
