"""The engine put together the fast way for where the model is: what `fastvlm ask`, `chat` and `bench` run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvlm.dialects.quantised_file import QuantisedWeights
from fastvlm.engine.cpu import cpu_kernels
from fastvlm.engine.engine import Engine
from fastvlm.engine.int4 import int4_linear
from fastvlm.engine.int8 import int8_linear
from fastvlm.engine.linear import Linear, LinearFactory, packed_linear
from fastvlm.engine.quantised import stored_linears
from fastvlm.engine.types import BITS, Bits
from fastvlm.engine.vision import FastImageEmbedder
from fastvlm.errors import UsageError

__all__ = ["fast_dtype", "fast_engine"]


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """What to open a checkpoint in so that an engine on `device` is fast; None for the checkpoint's own.

    float32 on a CPU without bfloat16 arithmetic (most laptops), where bfloat16 is emulated: twice the memory, a
    fraction of the time (docs/performance.md).
    """
    return torch.float32 if device.type == "cpu" and not cpu_kernels().has_fast_bfloat16 else None


def fast_engine(model: Any, processor: Any, *, bits: Bits = 16, **settings: Any) -> Engine:
    """An engine with the fastest kernels for the model's device.

    On a CPU: the encoder on NHWC, the decoder's weights packed, so that the model itself cannot be called any more.
    Elsewhere: the model's own encoder and weights; on a GPU of CUDA as graphs.

    Args:
        model, processor: as :func:`fastvlm.load` returns them; a CPU's engine takes the weights out of the model.
        bits: of the decoder's weights on a CPU. 16 keeps them as the checkpoint has them: the model's own dtype, or
            the 8 or 4 bits in which ``fastvlm quantize`` stored them, if the model was loaded with
            ``has_products=False``. At 4 the head keeps 8, because its rounding is heard at once.
        settings: of :class:`Engine`.

    Raises:
        UsageError: other bits than the checkpoint can be had in, or fewer than 16 away from a CPU.
    """
    if bits not in BITS:
        raise UsageError(f"bits is {bits!r}; expected 16, 8 or 4.")
    if model.device.type != "cpu":
        if bits != 16:
            raise UsageError(f"bits is {bits}, but the model is on {model.device}; weights of 8 and 4 bits need a CPU.")
        return Engine(model, processor, **{"has_fixed_shapes": model.device.type == "cuda", **settings})
    return Engine(
        model,
        processor,
        encode=FastImageEmbedder(model),
        make_linear=_factory(bits, model.config.text_config.vocab_size, model.stored_products),
        takes_weights=True,
        **settings,
    )


def _factory(bits: Bits, vocab_size: int, stored: QuantisedWeights | None) -> LinearFactory:
    if stored is not None:
        if bits not in (16, stored.options.bits):
            raise UsageError(
                f"bits is {bits}, but this checkpoint is stored in {stored.options.bits}. Leave it at that, or take "
                "the checkpoint that it was made from."
            )
        return stored_linears(stored)
    if bits == 16:
        return packed_linear
    if bits == 8:
        return int8_linear

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        is_head = weight.shape[0] == vocab_size
        return int8_linear(weight, bias) if is_head else int4_linear(weight, bias)

    return make
