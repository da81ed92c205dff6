"""8-bit weights of the image encoder: which are rounded, and how.

Rounded are the linear layers of FFNs (1x1 convolutions) and attention, nine tenths of the encoder's multiply-adds. The
others are the most sensitive, measured on the mini as the share of the features' squared error: the 1x1 convolutions of
the stem and between stages (two thirds, for 1 % of the work) and FFNs of the last stage (half of the rest, for 4 %).
They, depthwise convolutions and norms stay as they are.

A weight is ``values * scale`` with one scale per output, as the decoder's are (``rounding.py``), with one limit more:
two neighboring values (inputs 2 i and 2 i + 1) have magnitudes that sum to at most 128. Activations are rounded to
0..255, so two products fit 16 bits: CPUs without VNNI add pairs of products in 16 bits, and every CPU gets the same
integers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm.formats.names import ENCODER
from fastvlm.formats.rounding import LARGEST_8, Int8Weight

LARGEST_PAIR = 128  # 128 * 255 is below 2 ** 15
_LAYER = re.compile(
    re.escape(ENCODER) + r"stages\.(?P<stage>\d+)\.blocks\.\d+\.(?P<part>mlp|token_mixer)\.(fc[12]|qkv|proj)\.weight"
)


def is_encoder_linear(name: str) -> bool:
    """True if this is the canonical name of the weight of a linear layer in an FFN or attention of the encoder."""
    return _LAYER.fullmatch(name) is not None


def rounded_in_encoder(names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's canonical `names`, in their order, whose weights 8 bits for the encoder round."""
    found = [layer for name in names if (layer := _LAYER.fullmatch(name))]
    last = max((int(layer["stage"]) for layer in found), default=0)
    return [layer[0] for layer in found if layer["part"] != "mlp" or int(layer["stage"]) < last]


def weight_shape(name: str, outputs: int, inputs: int) -> tuple[int, ...]:
    """Shape of the tensor of a linear layer: those of the encoder's FFNs are 1x1 convolutions."""
    return (outputs, inputs, 1, 1) if is_encoder_linear(name) and ".mlp." in name else (outputs, inputs)


def round_encoder_weight(weight: Tensor) -> Int8Weight:
    """`weight` (out, in) or (out, in, 1, 1), any floating dtype, rounded to the nearest; the error is half a scale."""
    weight = weight.detach().flatten(1).float()
    # Rounding adds at most a half to each of two values, so a pair of 127 steps has at most 128.
    widest = torch.maximum(weight.abs().amax(1), _pairs(weight.abs()).amax(1))
    scales = widest.clamp_min(torch.finfo(torch.float32).tiny * LARGEST_8) / LARGEST_8
    return Int8Weight((weight / scales[:, None]).round_().to(torch.int8).contiguous(), scales)


def check_pairs(weight: Int8Weight) -> None:
    """Raise CheckpointError if two neighboring values are too large together."""
    largest = int(_pairs(weight.values.to(torch.int16).abs()).amax())
    if largest > LARGEST_PAIR:
        raise CheckpointError(
            f"two neighboring values have magnitudes of {largest} together; expected at most {LARGEST_PAIR}."
        )


def _pairs(magnitudes: Tensor) -> Tensor:
    """Sums (out, ceil(in / 2)) of neighbors in `magnitudes` (out, in)."""
    padded = F.pad(magnitudes, (0, magnitudes.shape[1] % 2))
    return padded[:, ::2] + padded[:, 1::2]
