"""Layers of the image encoder with 8-bit weights and activations (``formats/encoder_rounding.py``).

Each row of activations (the channels of one position) is rounded to 0..255 between its smallest and its largest number:
that needs no calibration, and a row's result does not depend on the other rows. Sums of products are exact. Without
compiled kernels PyTorch computes the same, more slowly than in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.backends.native.int8_linear import NativeInt8Linear, int8_kernels
from fastvlm.encoder_config import ATTENTION_HEAD_DIM
from fastvlm.formats.encoder_rounding import check_pairs
from fastvlm.formats.rounding import Int8Weight
from fastvlm.model.attention import AttentionBlock
from fastvlm.model.blocks import LayerScale, RepMixerBlock

RoundedWeights = Callable[[str], Int8Weight | None]
_LARGEST = 255.0  # of a rounded activation
_TINIEST = torch.finfo(torch.float32).tiny * _LARGEST  # range of a row of equal numbers
_REFERENCE_ROWS = 1024  # that are turned into float32 at a time


def round_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values uint8 (R, in), scales (R, 1) and lows (R, 1) float32 of `x` (R, in): ``x ~ lows + scales * values``.

    Scale and low of a row that is not finite are NaN, so its result shows it.
    """
    x = x.float()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    problem = (x * 0).sum(-1, keepdim=True)  # 0 or NaN
    scale, low = (high - low).clamp_min(_TINIEST) / _LARGEST + problem, low + problem
    values = ((x - low) * (1 / scale)).nan_to_num_().round_().to(torch.uint8)
    return values, scale, low


class ReferenceInt8Linear:
    """:class:`NativeInt8Linear` by PyTorch's operations; the same arguments."""

    def __init__(self, values: Tensor, scales: Tensor, bias: Tensor) -> None:
        self._values, self._scales, self._bias = values, scales, bias
        self._totals = scales * values.sum(1)
        self.num_bytes = values.nbytes + scales.nbytes + bias.nbytes + self._totals.nbytes

    def compute(self, rows: Tensor, out: Tensor, *, is_added: bool) -> None:
        """See :meth:`NativeInt8Linear.compute`."""
        weight = self._values.float()
        for some, result in zip(*(torch.split(each, _REFERENCE_ROWS) for each in (rows, out)), strict=True):
            y = self._outputs(some, weight)
            result.copy_(result + y if is_added else y)

    def add_ffn(self, narrow: ReferenceInt8Linear, rows: Tensor, out: Tensor) -> None:
        """See :meth:`NativeInt8Linear.add_ffn`."""
        wide, thin = self._values.float(), narrow._values.float()
        for some, result in zip(*(torch.split(each, _REFERENCE_ROWS) for each in (rows, out)), strict=True):
            result.add_(narrow._outputs(F.gelu(self._outputs(some, wide)), thin))

    def _outputs(self, rows: Tensor, weight: Tensor) -> Tensor:
        values, scales, lows = round_rows(rows)
        return F.linear(values.float(), weight) * (scales * self._scales) + (lows * self._totals + self._bias)


class Int8Linear:
    """A linear layer of the encoder on a CPU, by the compiled kernels if there are any.

    Args:
        weight: as :func:`fastvlm.formats.encoder_rounding.round_encoder_weight` makes it.
        bias: (out,) of any floating dtype, or None.
        factor: (out, ...), multiplied into the weight, but not into the bias; None for 1.

    Raises:
        CheckpointError: neighboring values of the weight are too large.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None, factor: Tensor | None = None) -> None:
        check_pairs(weight)
        self.out_features, self.in_features = weight.out_features, weight.in_features
        scales = weight.scales if factor is None else weight.scales * factor.detach().flatten().float()
        bias = torch.zeros_like(scales) if bias is None else bias.detach().float()
        kernels, tensors = int8_kernels(), (weight.values, scales, bias)
        self._layer = ReferenceInt8Linear(*tensors) if kernels is None else NativeInt8Linear(kernels, *tensors)
        self.num_bytes = self._layer.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self._computed(x, x.new_empty(*x.shape[:-1], self.out_features), is_added=False)

    def heads(self, x: Tensor) -> Tensor:
        """(R, in) -> (out / 32, R, 32), the heads of attention."""
        return self(x).view(len(x), -1, ATTENTION_HEAD_DIM).transpose(0, 1).contiguous()

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """`other` (..., out), which is overwritten if it is contiguous, plus the outputs."""
        return self._computed(x, other.contiguous(), is_added=True)

    def ffn(self, narrow: Int8Linear, x: Tensor, other: Tensor) -> Tensor:
        """`other` (R, out), which is overwritten if it is contiguous, plus ``narrow(gelu(self(x)))`` of `x` (R, in)."""
        out = other.contiguous()
        self._layer.add_ffn(narrow._layer, x.contiguous(), out)  # type: ignore[arg-type]  # both of one kind
        return out

    def _computed(self, x: Tensor, out: Tensor, *, is_added: bool) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        self._layer.compute(rows, out.view(-1, self.out_features), is_added=is_added)
        return out


@dataclass(frozen=True)
class Int8Block:
    """The rounded layers of a block, scales folded; None for those that are not rounded.

    Attributes:
        ffn: first and second layer.
        qkv, proj: of attention.
    """

    ffn: tuple[Int8Linear, Int8Linear] | None
    qkv: Int8Linear | None = None
    proj: Int8Linear | None = None


def int8_block(
    whole: RepMixerBlock | AttentionBlock,
    folded: RepMixerBlock | AttentionBlock,
    prefix: str,
    weight: RoundedWeights,
) -> Int8Block:
    """The layers of a block whose weights are rounded.

    Args:
        whole: the block of a checkpoint.
        folded: its copy for inference, whose biases are used.
        prefix: of its names, with a dot at the end.
        weight: the rounded weight of a name; None if it is not rounded.
    """

    def layer(name: str, bias: Tensor | None, factor: Tensor | None = None) -> Int8Linear | None:
        rounded = weight(f"{prefix}{name}.weight")
        return None if rounded is None else Int8Linear(rounded, bias, factor)

    scale = whole.layer_scale if isinstance(whole, RepMixerBlock) else whole.layer_scale_2
    widen, narrow = (
        layer("mlp.fc1", folded.mlp.fc1.bias),
        layer("mlp.fc2", folded.mlp.fc2.bias, _gamma(scale)),
    )
    ffn = None if widen is None or narrow is None else (widen, narrow)
    if not isinstance(whole, AttentionBlock) or not isinstance(folded, AttentionBlock):
        return Int8Block(ffn)
    mixer = folded.token_mixer
    queries = torch.ones(mixer.qkv.out_features)
    queries[: mixer.qkv.in_features] = ATTENTION_HEAD_DIM**-0.5
    qkv = layer("token_mixer.qkv", None, queries)
    return Int8Block(ffn, qkv, layer("token_mixer.proj", mixer.proj.bias, _gamma(whole.layer_scale_1)))


def _gamma(scale: nn.Module) -> Tensor:
    """The factors (C, 1, 1) of a layer scale."""
    if not isinstance(scale, LayerScale):
        raise TypeError(f"The layer scale is {type(scale).__name__}; expected a block that is not folded yet.")
    return scale.gamma
