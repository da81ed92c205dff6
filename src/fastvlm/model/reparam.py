"""Structural reparameterization: many branches of the training form become the one convolution of the inference form.

Pure functions on weights; nothing here knows a block. A *kernel* is a pair (weight (C_out, C_in / groups, k, k),
bias (C_out,)). All arithmetic is as in float64, so that fusing adds no rounding of its own; on MPS, which has no
float64, it is done on the CPU.

Source of the maths: FastViT (arXiv 2303.14189) section 3.1, MobileOne (arXiv 2206.04040) section 3.2, and
apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/{mobileone,mci}.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kernel(NamedTuple):
    """Weight (C_out, C_in / groups, k, k) and bias (C_out,) of one convolution, float64."""

    weight: Tensor
    bias: Tensor


def _double(tensor: Tensor) -> Tensor:
    """`tensor` in float64, where it is if its device has float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _bn_affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) that `bn` applies at inference: ``s = gamma / sqrt(var + eps)``, ``beta - mean * s``."""
    assert bn.running_var is not None and bn.running_mean is not None
    scale = _double(bn.weight) / torch.sqrt(_double(bn.running_var) + bn.eps)
    return scale, _double(bn.bias) - _double(bn.running_mean) * scale


def identity_weight(channels: int, groups: int, kernel_size: tuple[int, int]) -> Tensor:
    """Weight (C, C / groups, kh, kw) of a convolution that returns its input.

    Zeros, and ones at ``[i, i mod (C / groups), kh // 2, kw // 2]``.
    """
    weight = torch.zeros(channels, channels // groups, *kernel_size, dtype=torch.float64)
    rows = torch.arange(channels)
    weight[rows, rows % (channels // groups), kernel_size[0] // 2, kernel_size[1] // 2] = 1.0
    return weight


def fuse_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Kernel:
    """The convolution that equals `conv` followed by `bn` in eval mode."""
    scale, shift = _bn_affine(bn)
    bias = _double(conv.bias) * scale if conv.bias is not None else torch.zeros_like(shift)
    return Kernel(_double(conv.weight) * scale.reshape(-1, 1, 1, 1), bias + shift)


def fuse_identity_bn(bn: nn.BatchNorm2d, groups: int, kernel_size: tuple[int, int]) -> Kernel:
    """The convolution that equals `bn` alone (a skip branch) in eval mode."""
    scale, shift = _bn_affine(bn)
    weight = identity_weight(bn.num_features, groups, kernel_size).to(scale.device)
    return Kernel(weight * scale.reshape(-1, 1, 1, 1), shift)


def pad_kernel(kernel: Kernel, kernel_size: tuple[int, int]) -> Kernel:
    """`kernel` in the middle of a larger one of zeros; both sizes are odd."""
    pad_h = (kernel_size[0] - kernel.weight.shape[2]) // 2
    pad_w = (kernel_size[1] - kernel.weight.shape[3]) // 2
    return Kernel(F.pad(kernel.weight, [pad_w, pad_w, pad_h, pad_h]), kernel.bias)


def sum_kernels(kernels: Iterable[Kernel]) -> Kernel:
    """The convolution whose output is the sum of all (same shapes)."""
    weights, biases = zip(*kernels, strict=True)
    return Kernel(torch.stack(weights).sum(0), torch.stack(biases).sum(0))


def fuse_repmixer(mixer: Kernel, norm: Kernel, layer_scale: Tensor) -> Kernel:
    """RepMixer: ``x + g * (mixer(x) - norm(x))`` as one convolution; `layer_scale` g is (C, 1, 1)."""
    scale = _double(layer_scale).reshape(-1)
    identity = identity_weight(mixer.weight.shape[0], mixer.weight.shape[0], _kernel_size(mixer)).to(scale.device)
    weight = identity + scale.reshape(-1, 1, 1, 1) * (mixer.weight - norm.weight)
    return Kernel(weight, scale * (mixer.bias - norm.bias))


def fuse_skip(conv: nn.Conv2d) -> Kernel:
    """``conv(x) + x`` as one convolution (conditional positional encoding)."""
    assert conv.bias is not None
    kernel = Kernel(_double(conv.weight), _double(conv.bias))
    identity = identity_weight(conv.out_channels, conv.groups, _kernel_size(kernel)).to(conv.weight.device)
    return Kernel(kernel.weight + identity, kernel.bias)


def scale_outputs(weight: Tensor, bias: Tensor, scale: Tensor) -> Kernel:
    """Weight and bias of a layer whose output is multiplied by `scale` (any shape of C_out elements)."""
    factor = _double(scale).reshape(-1)
    return Kernel(_double(weight) * factor.reshape(-1, *[1] * (weight.dim() - 1)), _double(bias) * factor)


def scale_layer(layer: nn.Conv2d | nn.Linear, scale: Tensor) -> None:
    """Multiply the outputs of `layer` by `scale` (any shape of C_out elements), in place.

    Of one dtype, a product rounded once is the same without the way through float64, in half of the time.
    """
    assert layer.bias is not None
    with torch.no_grad():
        if scale.dtype == layer.weight.dtype == layer.bias.dtype:
            factor = scale.reshape(-1)
            layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.mul_(factor)
            return
        kernel = scale_outputs(layer.weight, layer.bias, scale)
        layer.weight.copy_(kernel.weight)
        layer.bias.copy_(kernel.bias)


def conv_with(kernel: Kernel, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution holding `kernel`, with the stride, groups, dtype and device of `like` and padding k // 2."""
    kernel_h, kernel_w = _kernel_size(kernel)
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        (kernel_h, kernel_w),
        stride=like.stride,  # type: ignore[arg-type]  # torch types it as a tuple of any length
        padding=(kernel_h // 2, kernel_w // 2),
        groups=like.groups,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(kernel.weight)
        assert conv.bias is not None
        conv.bias.copy_(kernel.bias)
    return conv


def _kernel_size(kernel: Kernel) -> tuple[int, int]:
    return (kernel.weight.shape[2], kernel.weight.shape[3])
