"""Engines, decoders and image encoders over live models, with parts that tests exchange."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

import torch
from torch import Tensor

from fastvlm.backends.cuda_graphs import GraphedEncode
from fastvlm.backends.decoder import Decoder
from fastvlm.backends.decoder_weights import prepare_decoder
from fastvlm.backends.generators import finished
from fastvlm.backends.image_encoder import SteppedImageEncoder, TorchImageEncoder
from fastvlm.backends.linear import Linear, LinearMaker, joined, joined_biases, plain_linears
from fastvlm.backends.local import LocalBackend, _context
from fastvlm.engine.engine import Engine
from fastvlm.formats.checkpoint import Checkpoint

__all__ = ["CpuEncode", "decoder", "engine", "maker", "prefilled"]

CPU = torch.device("cpu")


class Function:
    """A function as a layer."""

    num_bytes = 0

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self._function(x)


def maker(make: Callable[[Tensor, Tensor | None], Linear | Callable[[Tensor], Tensor]]) -> LinearMaker:
    """A maker of layers from a function of one weight and one bias, which makes a layer or a plain function."""

    def made(weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:
        layer = make(joined(weights), joined_biases(biases))
        return layer if hasattr(layer, "num_bytes") else Function(layer)

    return made


def decoder(
    model,
    num_slots: int,
    context: int,
    make: LinearMaker | None = None,
    *,
    has_fixed_shapes: bool = False,
    dtype: torch.dtype | None = None,
    checkpoint: Checkpoint | None = None,
    make_rounded=None,
) -> Decoder:
    """A decoder over the model's weights, by PyTorch's own layers unless `make` makes others."""
    checkpoint = model.to_checkpoint(None) if checkpoint is None else checkpoint
    dtype = checkpoint.dtype if dtype is None else dtype
    make = plain_linears(CPU, dtype) if make is None else make
    weights = prepare_decoder(checkpoint, make, make_rounded, dtype, CPU)
    return Decoder(weights, num_slots, context, has_fixed_shapes=has_fixed_shapes)


def prefilled(decoder: Decoder, embeds: Tensor, slot: int, start: int = 0) -> Tensor:
    """Logits (V,) after `embeds` (T, D), which continue the first `start` tokens of `slot`."""
    return decoder.logits(decoder.prefill_chunk(embeds, slot, start))[0]


def engine(
    model,
    processor,
    *,
    num_slots: int = 4,
    context: int | None = None,
    encode=None,
    make_linear=None,
    has_fixed_shapes: bool = False,
    **settings,
) -> Engine:
    """An engine of PyTorch's own layers; `encode` and `make_linear` (a maker of one weight) take the place of them."""
    if context is not None or make_linear is not None or has_fixed_shapes or encode is not None:
        checkpoint = model.to_checkpoint(processor)
        context = _context(checkpoint, context, CPU)
        images = _Images(encode) if encode is not None else TorchImageEncoder(checkpoint, checkpoint.dtype, CPU)
        if has_fixed_shapes:
            whole = partial(_all_at_once, images) if encode is None else encode
            images = _Images(GraphedEncode(whole, CPU))
        made = decoder(
            model,
            num_slots,
            context,
            None if make_linear is None else maker(make_linear),
            has_fixed_shapes=has_fixed_shapes,
            checkpoint=checkpoint,
        )
        return Engine(checkpoint, LocalBackend(images, made, checkpoint.files), **settings)
    return Engine.from_model(model, processor, num_slots=num_slots, kernels="reference", **settings)


def _all_at_once(images, pixel_values: Tensor) -> Tensor:
    return finished(images(pixel_values))


class _Images:
    """A function of pixels, or one that has `slices`, as an image encoder."""

    def __init__(self, encode) -> None:
        self._encode, self.is_stepped = encode, hasattr(encode, "slices")

    def __call__(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        if self.is_stepped:
            return (yield from self._encode.slices(pixel_values))
        yield from ()
        return self._encode(pixel_values)


class CpuEncode:
    """The CPU's image encoder over the weights of a live model, as a function that has `slices`."""

    def __init__(self, model, dtype: torch.dtype | None = None) -> None:
        checkpoint = model.to_checkpoint(None)
        self.slices = SteppedImageEncoder(checkpoint, checkpoint.dtype if dtype is None else dtype)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        return finished(self.slices(pixel_values))
