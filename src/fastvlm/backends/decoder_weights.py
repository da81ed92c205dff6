"""Decoder weights prepared for inference: linear layers by name, made once from a checkpoint.

Replicas share one :class:`DecoderWeights`. A checkpoint that differs from another one in some tensors (a merged
adapter) shares every layer whose tensors are equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvlm.backends.linear import Linear, LinearMaker, PlainLinear, joined_biases
from fastvlm.config import DecoderConfig
from fastvlm.errors import CheckpointError
from fastvlm.formats.checkpoint import Checkpoint, RotaryPositions
from fastvlm.formats.names import DECODER, EMBEDDING, FINAL_NORM, HEAD, layer_linears, linear_groups
from fastvlm.formats.opening import decoder_shapes
from fastvlm.formats.rounding import RoundedWeight

RoundedMaker = Callable[[RoundedWeight, Tensor | None], Linear]  # (weight, bias (out,)) -> layer


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: two norms (D,) and four linear layers; `gate_up` gives gate and up projections, concatenated."""

    attention_norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """All weights of a decoder and its head.

    Attributes:
        config: the decoder's sizes.
        dtype: dtype of the computation.
        embedding: (V, D), in the checkpoint's dtype.
        linears: names of a layer's weights -> the linear layer.
        layers: the decoder layers with their norms.
        norm: (D,), before the head.
        rotary: rotary position embedding.
        own_bytes: bytes of linear layers that are not shared with other weights.
    """

    config: DecoderConfig
    dtype: torch.dtype
    embedding: Tensor
    linears: Mapping[tuple[str, ...], Linear]
    layers: tuple[DecoderLayer, ...]
    norm: Tensor
    rotary: RotaryPositions
    own_bytes: int

    @property
    def head(self) -> Linear:
        """The output projection: (T, D) -> logits (T, V)."""
        return self.linears[HEAD,]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.device


def prepare_decoder(
    checkpoint: Checkpoint,
    make: LinearMaker,
    make_rounded: RoundedMaker,
    dtype: torch.dtype,
    device: torch.device,
    base: DecoderWeights | None = None,
) -> DecoderWeights:
    """Prepare the decoder of `checkpoint` for inference.

    Args:
        checkpoint: not modified.
        make: makes layers of floating weights.
        make_rounded: makes layers of weights stored in 8 or 4 bits.
        dtype, device: dtype and device of the computation.
        base: weights prepared in the same way from the checkpoint that ``checkpoint.changed`` refers to; layers without
            a changed tensor are reused.
    """
    prepared = _Preparation(checkpoint, make, make_rounded, dtype, base)
    # The head first: packing briefly takes twice its memory, which the layers then reuse.
    names = linear_groups(checkpoint.config.text_config.num_hidden_layers)
    linears = {group: prepared.linear(group) for group in (names[-1], *names[:-1])}

    def norm(name: str) -> Tensor:
        return checkpoint.tensors[name].detach().to(device, dtype)

    def layer(index: int) -> DecoderLayer:
        prefix = f"{DECODER}layers.{index}."
        return DecoderLayer(
            attention_norm=norm(f"{prefix}input_layernorm.weight"),
            mlp_norm=norm(f"{prefix}post_attention_layernorm.weight"),
            **{part: linears[group] for part, group in layer_linears(index).items()},
        )

    rotary = checkpoint.rotary
    return DecoderWeights(
        config=checkpoint.config.text_config,
        dtype=dtype,
        embedding=checkpoint.tensors[EMBEDDING].detach().to(device),
        linears=linears,
        layers=tuple(map(layer, range(checkpoint.config.text_config.num_hidden_layers))),
        norm=norm(FINAL_NORM),
        rotary=RotaryPositions(rotary.frequencies.to(device), rotary.scaling),
        own_bytes=prepared.own_bytes,
    )


class _Preparation:
    """Makes linear layers by name or reuses those of `base`; see :func:`prepare_decoder`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        make: LinearMaker,
        make_rounded: RoundedMaker,
        dtype: torch.dtype,
        base: DecoderWeights | None,
    ) -> None:
        self._checkpoint, self._make, self._make_rounded = checkpoint, make, make_rounded
        self._dtype, self._base = dtype, base
        self._shapes = decoder_shapes(checkpoint.config)
        self.own_bytes = 0

    def linear(self, names: tuple[str, ...]) -> Linear:
        """The layer of the weights `names`, which share one input."""
        sources = [self._source(name) for name in names]
        biases = [_bias_name(name) for name in sources]
        if self._base is not None and not self._checkpoint.changed.intersection((*sources, *biases)):
            return self._base.linears[names]
        layer = self._made(names, sources, [self._checkpoint.tensors.get(bias) for bias in biases])
        self.own_bytes += layer.num_bytes
        return layer

    def _source(self, name: str) -> str:
        """The tensor of the weight `name`: for a tied head, the embedding table."""
        return EMBEDDING if name == HEAD and HEAD not in self._checkpoint.tensors else name

    def _made(self, names: tuple[str, ...], sources: Sequence[str], biases: Sequence[Tensor | None]) -> Linear:
        rounded = self._checkpoint.rounded.get(names)
        if rounded is not None:
            _check_shape(rounded, self._shape(sources))
            return self._make_rounded(rounded, joined_biases(biases))
        if any(name in self._checkpoint.layers for name in names):
            return _ModelLayers([self._own_layer(name, source) for name, source in zip(names, sources, strict=True)])
        weights = [self._checkpoint.tensors[source] for source in sources]
        return self._make(weights, biases, is_head=names == (HEAD,))

    def _shape(self, sources: Sequence[str]) -> tuple[int, int]:
        """(outputs, inputs) of the layer of the tensors `sources` according to the configuration."""
        return sum(self._shapes[source][0] for source in sources), self._shapes[sources[0]][1]

    def _own_layer(self, name: str, source: str) -> Callable[[Tensor], Tensor]:
        """The layer with its own code if there is one, else a plain one."""
        own = self._checkpoint.layers.get(name)
        if own is not None:
            return _in_dtype(own, self._dtype)
        return PlainLinear(
            self._checkpoint.tensors[source].to(self._dtype), self._checkpoint.tensors.get(_bias_name(name))
        )


def _check_shape(weight: RoundedWeight, expected: tuple[int, int]) -> None:
    found = weight.out_features, weight.in_features
    if found != expected:
        raise CheckpointError(
            f"A quantized weight has the shape {list(found)}; the decoder expects {list(expected)}. The weights "
            "belong to another model or version. Quantize the model again."
        )


def _in_dtype(layer: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`layer`, or a copy in `dtype` if it is a module with floating weights of another dtype."""
    if not isinstance(layer, nn.Module) or all(
        parameter.dtype == dtype for parameter in layer.parameters() if parameter.is_floating_point()
    ):
        return layer
    return copy.deepcopy(layer).to(dtype)


def _bias_name(weight_name: str) -> str:
    return weight_name.removesuffix("weight") + "bias"


class _ModelLayers:
    """Layers of a live model with code of their own, such as an adapter's; their outputs are concatenated."""

    num_bytes = 0  # the weights are the model's

    def __init__(self, layers: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self._layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        outputs = [layer(x) for layer in self._layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
