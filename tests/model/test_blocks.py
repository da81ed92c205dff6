"""Every block: its two forms compute the same, fusing twice is fusing once, the fused state dict loads."""

import copy

import pytest
import tiny
import torch
from torch import nn

from fastvlm.model import attention, blocks

FORMS = {
    "mobileone": lambda fused: blocks.MobileOneBlock(8, 8, 3, groups=8, is_fused=fused),
    "mobileone_without_scale": lambda fused: blocks.MobileOneBlock(3, 8, 3, stride=2, is_fused=fused, has_scale=False),
    "mobileone_1x1": lambda fused: blocks.MobileOneBlock(8, 8, 1, is_fused=fused),
    "mobileone_with_se": lambda fused: blocks.MobileOneBlock(8, 16, 3, groups=8, is_fused=fused, se_channels=4),
    "mobileone_dense_groups": lambda fused: blocks.MobileOneBlock(8, 8, 3, groups=2, is_fused=fused),
    "large_kernel": lambda fused: blocks.ReparamLargeKernelConv(
        8, 16, 7, stride=2, groups=8, is_fused=fused, has_se=False, has_act=True
    ),
    "large_kernel_with_se": lambda fused: blocks.ReparamLargeKernelConv(
        8, 16, 7, stride=2, groups=8, is_fused=fused, has_se=True, has_act=False
    ),
    "repmixer": lambda fused: blocks.RepMixer(8, 3, layer_scale_init=1e-5, is_fused=fused),
    "positions": lambda fused: blocks.RepConditionalPosEnc(8, (7, 7), is_fused=fused),
    "positions_not_square": lambda fused: blocks.RepConditionalPosEnc(8, (5, 3), is_fused=fused),
}


def in_channels(name):
    return 3 if name == "mobileone_without_scale" else 8


@pytest.mark.parametrize("name", FORMS)
def test_fused_equals_branches(name):
    block = tiny.loud(FORMS[name](False)).eval()
    x = torch.randn(2, in_channels(name), 13, 10)
    branches = block(x)
    block.reparameterize()
    assert branches.std() > 0.1
    torch.testing.assert_close(block(x), branches, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FORMS)
def test_fusing_twice_is_fusing_once(name):
    block = tiny.loud(FORMS[name](False))
    block.reparameterize()
    once = copy.deepcopy(block.state_dict())
    block.reparameterize()
    twice = block.state_dict()
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("name", FORMS)
def test_fused_state_dict_is_that_of_the_inference_form(name):
    block = tiny.loud(FORMS[name](False)).eval()
    block.reparameterize()
    fresh = FORMS[name](True).eval()
    fresh.load_state_dict(block.state_dict(), strict=True)
    x = torch.randn(1, in_channels(name), 8, 8)
    assert torch.equal(fresh(x), block(x))


@pytest.mark.parametrize("name", FORMS)
def test_fused_parameters_can_learn(name):
    block = FORMS[name](False)
    block.reparameterize()
    block(torch.randn(1, in_channels(name), 8, 8)).square().sum().backward()
    assert block.reparam_conv.weight.grad is not None


def test_training_form_in_train_mode_is_not_the_fused_one():
    # The reason for fusing only what has finished training: batch statistics are not the running ones.
    block = tiny.loud(blocks.RepMixer(8, 3, layer_scale_init=1e-5, is_fused=False)).train()
    x = 3 * torch.randn(4, 8, 8, 8) + 1
    training = block(x)
    block.reparameterize()
    assert (block(x) - training).abs().max() > 0.01


@pytest.mark.parametrize(
    "block",
    [
        blocks.RepMixerBlock(32, mixer_kernel=3, ratio=4, layer_scale_init=1e-5, is_fused=True),
        attention.AttentionBlock(32, ratio=4, layer_scale_init=1e-5),
    ],
    ids=["repmixer", "attention"],
)
def test_folding_for_deployment_changes_no_output(block):
    tiny.loud(block).eval()
    x = torch.randn(2, 32, 7, 5)
    before = block(x)
    block.fold()
    assert not [m for m in block.modules() if isinstance(m, (nn.BatchNorm2d, blocks.LayerScale))]
    torch.testing.assert_close(block(x), before, atol=1e-4, rtol=0)


def test_attention_against_explicit_arithmetic():
    layer = tiny.loud(attention.MultiHeadSelfAttention(96)).double()
    x = torch.randn(2, 96, 3, 5, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ layer.qkv.weight.T).split(96, dim=-1)  # all of q, all of k, all of v
    heads = []
    for head in range(3):
        part = slice(32 * head, 32 * (head + 1))
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 32**0.5).softmax(-1)
        heads.append(weights @ v[..., part])
    expected = (torch.cat(heads, -1) @ layer.proj.weight.T + layer.proj.bias).transpose(1, 2).reshape(2, 96, 3, 5)
    torch.testing.assert_close(layer(x), expected)


def test_attention_has_no_positions():
    # A permutation of the positions permutes the outputs: only the convolutions know where things are.
    layer = tiny.loud(attention.MultiHeadSelfAttention(32)).double()
    x = torch.randn(1, 32, 1, 9, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(layer(x)[..., order], layer(x[..., order]))


def test_layernorm_is_over_channels_with_biased_variance():
    norm = tiny.loud(attention.ChannelLayerNorm(16)).double()
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_squeeze_excite_is_a_gate_per_channel():
    gate = tiny.loud(blocks.SqueezeExcite(6, 3)).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    factor = gate(x) / x
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    assert ((factor > 0) & (factor < 1)).all()


@pytest.mark.parametrize(("channels", "reduced"), [(16, 8), (64, 16), (100, 24), (768, 192)])
def test_se_width_in_downsampling_is_a_quarter_in_steps_of_eight(channels, reduced):
    conv = blocks.ReparamLargeKernelConv(
        channels, channels, 7, stride=2, groups=channels, is_fused=True, has_se=True, has_act=True
    )
    assert conv.se.fc1.out_channels == reduced


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # converters for phones use it still
def test_a_fused_block_has_no_main_conv_so_that_it_can_be_traced():
    from fastvlm.model.blocks import MobileOneBlock

    block = MobileOneBlock(4, 4, 3, is_fused=True).eval()
    assert not hasattr(block, "main_conv")
    image = torch.randn(1, 4, 8, 8)
    assert torch.jit.trace(block, image)(image).equal(block(image))
