"""The engine put together the fast way for where the model is: what `fastvlm ask`, `chat` and `bench` run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.backends.cpu.encoder import FastEncoder, FastImageEmbedder
from fastvlm.backends.cpu.int4 import int4_linear
from fastvlm.backends.cpu.int8 import int8_linear, rounded_to_int8
from fastvlm.backends.cpu.linear import Linear, LinearFactory, packed_linear_in
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.cpu.rounded import stored_linears
from fastvlm.backends.decoder import side_by_side
from fastvlm.backends.mapped_memory import give_back
from fastvlm.backends.native.linear import NativeFactory, has_native_linears
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import BITS, Bits
from fastvlm.errors import UsageError
from fastvlm.formats.quantized_file import QuantizedWeights
from fastvlm.formats.rounding import GROUP_SIZES, RoundedWeight, quantize_int4

__all__ = ["SharedWeights", "fast_dtype", "fast_engine"]


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """What to open a checkpoint in so that an engine on `device` is fast; None for the checkpoint's own.

    float32 on a CPU without bfloat16 arithmetic (most laptops), where bfloat16 is emulated: twice the memory, a
    fraction of the time (docs/performance.md).
    """
    return torch.float32 if device.type == "cpu" and not cpu_kernels().has_fast_bfloat16 else None


class SharedWeights:
    """What several engines of one process hold once; hand the same to each :func:`fast_engine`, then drop it.

    A weight is known by its memory: models whose parameters are the same memory (adapters of one base, replicas) get
    the same product, packed once. Until this is dropped, plain weights stay beside the packed ones.

    Attributes:
        num_bytes: of the decoders' products that were made so far, each counted once.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._products: dict[Any, tuple[list[Tensor | None], Linear]] = {}
        self._joined: dict[Any, tuple[list[Tensor], Tensor]] = {}
        self._encoders: dict[Any, tuple[Any, FastEncoder]] = {}

    def factory(self, make: LinearFactory) -> LinearFactory:
        """`make`, called once for each weight; all models must be given factories that do the same."""

        return _MakeOnce(self, make)

    def product(
        self, make: Callable[..., Linear], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> Linear:
        """What ``make(weights, biases)`` gives for this memory, or gave before."""
        key = tuple(None if tensor is None else _memory(tensor) for tensor in (*weights, *biases))
        if key not in self._products:
            held = [None if tensor is None else tensor.detach() for tensor in (*weights, *biases)]
            product = make(weights, biases)
            self.num_bytes += int(getattr(product, "num_bytes", sum(weight.nbytes for weight in weights)))
            self._products[key] = (held, product)  # the weights too, or their addresses would be used again
        return self._products[key][1]

    def side_by_side(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """All rows of `parameters` in one tensor, the same for models that share them.

        Those of later models do not become views of it: their engines take the weights out.
        """
        key = tuple(_memory(parameter) for parameter in parameters)
        if key not in self._joined:
            parts = [parameter.detach() for parameter in parameters]  # kept, or their addresses would be used again
            self._joined[key] = (parts, side_by_side(parameters))
        return self._joined[key][1]

    def encoder(self, model: Any, dtype: torch.dtype | None = None) -> FastEncoder:
        """The encoder of `model` in `dtype`, or one that was made of the same memory; one dtype for all."""
        tower = model.model.vision_tower.timm_model
        key = tuple(_memory(tensor) for tensor in (*tower.parameters(), *tower.buffers()))
        if key not in self._encoders:
            self._encoders[key] = (tower, FastEncoder(tower, dtype))
        return self._encoders[key][1]


class _MakeOnce:
    """A factory whose products, and what lies side by side in them, are made once for all models of `shared`."""

    def __init__(self, shared: SharedWeights, make: LinearFactory) -> None:
        self._shared, self._make = shared, make
        self.side_by_side = shared.side_by_side
        if isinstance(make, NativeFactory):
            self.of_parts = partial(shared.product, make.of_parts)

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The layer of `weight` (out, in) and `bias` (out,) or None."""
        return self._shared.product(lambda weights, biases: self._make(weights[0], biases[0]), [weight], [bias])


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def fast_engine(
    model: Any,
    processor: Any,
    *,
    bits: Bits = 16,
    dtype: torch.dtype | None = None,
    shared: SharedWeights | None = None,
    **settings: Any,
) -> Engine:
    """An engine with the fastest kernels for the model's device.

    On a CPU: the encoder on NHWC, the decoder's weights packed, so that the model itself cannot be called any more.
    Elsewhere: the model's own encoder and weights; on a GPU of CUDA as graphs.

    Args:
        model, processor: as :func:`fastvlm.load` returns them; a CPU's engine takes the weights out of the model.
        bits: of the decoder's weights on a CPU. 16 keeps them as the checkpoint has them: the model's own dtype, or
            the 8 or 4 bits in which ``fastvlm quantize`` stored them, if the model was loaded with
            ``has_products=False``. At 4 the head keeps 8, because its rounding is heard at once.
        dtype: what a CPU computes in; None for the model's own. Weights are turned one by one while they are laid out,
            so a model whose weights lie in a mapped file never exists in `dtype` as a whole.
        shared: what this engine has in common with others of the process, which may run in other threads; all of
            their models must exist before the first engine is made. It then gets a processor of its own.
        settings: of :class:`Engine`.

    Raises:
        UsageError: other bits than the checkpoint can be had in, or fewer than 16 away from a CPU.
    """
    if bits not in BITS:
        raise UsageError(f"bits is {bits!r}; expected 16, 8 or 4.")
    if shared is not None:
        processor = copy.deepcopy(processor)  # tokenizers are changed while they are used: one for each thread
    if model.device.type != "cpu":
        if bits != 16:
            raise UsageError(f"bits is {bits}, but the model is on {model.device}; weights of 8 and 4 bits need a CPU.")
        return Engine(model, processor, **{"has_fixed_shapes": model.device.type == "cuda", **settings})
    own = model.get_input_embeddings().weight.dtype  # `model.dtype` is the encoder's, which is another in float16
    kind = dtype or own
    seen_in = None if kind == own else _image_dtype(kind)
    encode = FastImageEmbedder(model, seen_in, encoder=None if shared is None else shared.encoder(model, seen_in))
    for weight in model.model.vision_tower.parameters():  # the fast encoder has its own
        give_back(weight)
    make = _factory(bits, model.config.text_config.vocab_size, model.stored_products, kind)
    return Engine(
        model,
        processor,
        encode=encode,
        # Stored products come by their order, not by the weight.
        make_linear=make if shared is None or model.stored_products is not None else shared.factory(make),
        takes_weights=True,
        dtype=kind,
        **settings,
    )


def _image_dtype(dtype: torch.dtype) -> torch.dtype:
    """What images are computed in beside a decoder in `dtype`: the encoder's numbers are too large for float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _factory(bits: Bits, vocab_size: int, stored: QuantizedWeights | None, dtype: torch.dtype) -> LinearFactory:
    if stored is not None:
        if bits not in (16, stored.options.bits):
            raise UsageError(
                f"bits is {bits}, but this checkpoint is stored in {stored.options.bits}. Leave it at that, or take "
                "the checkpoint that it was made from."
            )
        return stored_linears(stored, dtype)
    if has_native_linears(dtype):
        return NativeFactory(partial(_form, bits=bits, vocab_size=vocab_size))
    if bits == 16:
        return packed_linear_in(dtype)
    if bits == 8:
        return int8_linear

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        is_head = weight.shape[0] == vocab_size
        return int8_linear(weight, bias) if is_head else int4_linear(weight, bias)

    return make


def _form(weight: Tensor, bits: Bits, vocab_size: int) -> Tensor | RoundedWeight:
    """What the compiled kernels multiply: `weight` (out, in) itself in bfloat16, or rounded."""
    if bits == 16:
        return weight.to(torch.bfloat16).contiguous()
    has_groups = weight.shape[1] % GROUP_SIZES[0] == 0
    if bits == 8 or len(weight) == vocab_size or not has_groups:
        return rounded_to_int8(weight)
    return quantize_int4(weight, GROUP_SIZES[0])
