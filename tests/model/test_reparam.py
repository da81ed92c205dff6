"""Each fusing function against what it replaces, computed the long way, in float64."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastvlm.model import reparam

SLOW_ORACLE = settings(max_examples=30, deadline=None)


def run(kernel, x, stride=1, groups=1):
    """A kernel applied as the convolution it stands for: zero padding of half its size."""
    padding = (kernel.weight.shape[2] // 2, kernel.weight.shape[3] // 2)
    return nn.functional.conv2d(x, kernel.weight, kernel.bias, stride, padding, groups=groups)


def loud_bn(channels):
    return tiny.loud(nn.BatchNorm2d(channels).double(), seed=channels).eval()


def maps(channels, size=9, seed=0):
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@SLOW_ORACLE
@given(
    groups=st.sampled_from([1, 2, 4]),
    factor=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2),
    has_bias=st.booleans(),
)
def test_conv_and_batchnorm(groups, factor, kernel, stride, has_bias):
    conv = nn.Conv2d(4, 4 * factor, kernel, stride, kernel // 2, groups=groups, bias=has_bias).double()
    bn = loud_bn(4 * factor)
    x = maps(4)
    torch.testing.assert_close(run(reparam.fuse_conv_bn(conv, bn), x, stride, groups), bn(conv(x)))


@SLOW_ORACLE
@given(groups=st.sampled_from([1, 2, 4, 8]), kernel=st.sampled_from([1, 3, 7]))
def test_batchnorm_alone(groups, kernel):
    bn, x = loud_bn(8), maps(8)
    torch.testing.assert_close(run(reparam.fuse_identity_bn(bn, groups, (kernel, kernel)), x, groups=groups), bn(x))


@SLOW_ORACLE
@given(groups=st.sampled_from([1, 2, 4, 8]), kernel=st.tuples(*[st.sampled_from([1, 3, 5])] * 2))
def test_identity_weight_changes_nothing(groups, kernel):
    weight = reparam.identity_weight(8, groups, kernel)
    x = maps(8)
    assert torch.equal(run(reparam.Kernel(weight, torch.zeros(8, dtype=torch.float64)), x, groups=groups), x)
    assert weight.sum() == 8


@SLOW_ORACLE
@given(small=st.sampled_from([1, 3, 5]), extra=st.sampled_from([0, 2, 4]), stride=st.integers(1, 2))
def test_padded_kernel_computes_the_same(small, extra, stride):
    kernel = reparam.Kernel(torch.randn(6, 2, small, small).double(), torch.randn(6).double())
    large = small + extra
    padded = reparam.pad_kernel(kernel, (large, large))
    assert padded.weight.shape == (6, 2, large, large)
    x = maps(2)
    torch.testing.assert_close(run(padded, x, stride), run(kernel, x, stride))


def test_sum_of_kernels():
    kernels = [reparam.Kernel(torch.randn(4, 4, 3, 3).double(), torch.randn(4).double()) for _ in range(3)]
    x = maps(4)
    torch.testing.assert_close(run(reparam.sum_kernels(kernels), x), sum(run(kernel, x) for kernel in kernels))


def test_repmixer_keeps_its_identity():
    mixer = reparam.Kernel(torch.randn(4, 1, 3, 3).double(), torch.randn(4).double())
    norm = reparam.Kernel(torch.randn(4, 1, 3, 3).double(), torch.randn(4).double())
    scale = torch.rand(4, 1, 1).double()
    x = maps(4)
    expected = x + scale * (run(mixer, x, groups=4) - run(norm, x, groups=4))
    torch.testing.assert_close(run(reparam.fuse_repmixer(mixer, norm, scale), x, groups=4), expected)


def test_skip_around_a_convolution():
    conv = nn.Conv2d(6, 6, 7, padding=3, groups=6).double()
    x = maps(6)
    torch.testing.assert_close(run(reparam.fuse_skip(conv), x, groups=6), conv(x) + x)


@pytest.mark.parametrize("layer", [nn.Linear(3, 5), nn.Conv2d(3, 5, 1)], ids=["linear", "conv"])
def test_scaled_layer_has_scaled_outputs(layer):
    x = torch.randn(2, 3) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 4, 4)
    scale = torch.rand(5, 1, 1)
    before = layer(x) * (scale.flatten() if isinstance(layer, nn.Linear) else scale)
    weight = layer.weight
    reparam.scale_layer(layer, scale)
    torch.testing.assert_close(layer(x), before)
    assert layer.weight is weight, "the parameter stays the same object, so optimizers and ties hold"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_dtype", [None, torch.float32])
def test_scaling_rounds_once_as_through_float64(dtype, scale_dtype):
    layer, scale = nn.Linear(50, 70).to(dtype), torch.rand(70, 1, 1).to(scale_dtype or dtype)
    kernel = reparam.scale_outputs(layer.weight, layer.bias, scale)
    reparam.scale_layer(layer, scale)
    assert torch.equal(layer.weight, kernel.weight.to(dtype)) and torch.equal(layer.bias, kernel.bias.to(dtype))


def test_fusing_small_variances_does_not_overflow():
    bn = nn.BatchNorm2d(2).double().eval()
    bn.running_var.zero_()  # a channel that was always constant
    kernel = reparam.fuse_identity_bn(bn, 2, (1, 1))
    assert kernel.weight.isfinite().all()
    torch.testing.assert_close(kernel.weight.flatten(), torch.full((2,), bn.eps**-0.5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_convolution_copies_form_from_the_old(dtype):
    like = nn.Conv2d(4, 8, 7, stride=2, padding=3, groups=4, bias=False, dtype=dtype)
    conv = reparam.conv_with(reparam.Kernel(torch.randn(8, 1, 7, 7).double(), torch.randn(8).double()), like=like)
    assert (conv.stride, conv.padding, conv.groups, conv.weight.dtype) == ((2, 2), (3, 3), 4, dtype)
    x = torch.randn(1, 4, 9, 9, dtype=dtype)
    assert conv(x).shape == like(x).shape
