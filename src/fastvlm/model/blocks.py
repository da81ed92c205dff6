"""The blocks of FastViTHD. Attribute names are those of the checkpoints' keys, so no key is renamed on loading.

Maps are (B, C, h, w) in the model's floating dtype. Every block that has a training form with several branches
has ``reparameterize()``, which replaces them by one `reparam_conv` (in place, once).

Source: apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/{mobileone,mci}.py``; key names as
in timm 1.0.31 ``fastvit.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.model import reparam


def _conv(
    in_channels: int, out_channels: int, kernel: int | tuple[int, int], *, stride: int = 1, groups: int = 1, bias: bool
) -> nn.Conv2d:
    """A convolution with zero padding of half the kernel on each side: stride 1 keeps the size."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2)
    return nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, groups=groups, bias=bias)


class FfnConv2d(nn.Conv2d):
    """A convolution of a ConvFFN: the kind says how new weights are filled, whatever the order of filling."""


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm: one branch of a training form, or the 7x7 of a ConvFFN."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]

    def kernel(self) -> reparam.Kernel:
        """The branch as one biased convolution."""
        return reparam.fuse_conv_bn(self.conv, self.bn)


class LayerScale(nn.Module):
    """Multiplies each channel by a learnt `gamma` (C, 1, 1)."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SqueezeExcite(nn.Module):
    """Channel gate: mean over the map, 1x1 to `reduced`, ReLU, 1x1 back, sigmoid, multiply."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = _conv(channels, reduced, 1, bias=True)
        self.fc2 = _conv(reduced, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        gate = self.fc2(F.relu(self.fc1(gate)))
        return x * gate.sigmoid()  # type: ignore[no-any-return]


class MobileOneBlock(nn.Module):
    """k x k convolution [+ 1x1 scale branch] [+ skip BatchNorm], then optional SE and GELU.

    Training form: `conv_kxk.0`, `conv_scale` (only if k > 1 and asked for), `identity` (only if in == out and
    stride 1), summed. Inference form: `reparam_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        is_fused: bool,
        has_kxk: bool = True,
        has_scale: bool = True,
        has_act: bool = True,
        se_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = (kernel, kernel)
        self.groups = groups
        self.se = SqueezeExcite(out_channels, se_channels) if se_channels else nn.Identity()
        self.act = nn.GELU() if has_act else nn.Identity()
        self.reparam_conv: nn.Conv2d | None = None
        self.identity: nn.BatchNorm2d | None = None
        self.conv_kxk: nn.ModuleList | None = None
        self.conv_scale: ConvNorm | None = None
        if is_fused:
            self.reparam_conv = _conv(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=True)
            return
        if in_channels == out_channels and stride == 1:
            self.identity = nn.BatchNorm2d(in_channels)
        if has_kxk:
            branch = ConvNorm(in_channels, out_channels, kernel, stride=stride, groups=groups)
            self.conv_kxk = nn.ModuleList([branch])
        if has_scale and kernel > 1:
            self.conv_scale = ConvNorm(in_channels, out_channels, 1, stride=stride, groups=groups)

    @property
    def main_conv(self) -> nn.Conv2d:
        """The k x k convolution of the training form."""
        if self.conv_kxk is None:  # torch.jit.trace asks each property whether it is there
            raise AttributeError("main_conv is of the training form; this block is fused.")
        branch = self.conv_kxk[0]
        assert isinstance(branch, ConvNorm)
        return branch.conv

    def _branches(self) -> list[nn.Module]:
        branches: list[nn.Module] = [b for b in (self.conv_scale, self.identity) if b is not None]
        return [*branches, *(self.conv_kxk or [])]

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            x = self.reparam_conv(x)
        else:
            first, *others = self._branches()
            total = first(x)
            for branch in others:
                total = total + branch(x)
            x = total
        return self.act(self.se(x))  # type: ignore[no-any-return]

    def kernel(self) -> reparam.Kernel:
        """All branches of the training form as one convolution's weight and bias."""
        kernels = []
        for branch in self._branches():
            if isinstance(branch, nn.BatchNorm2d):
                kernels.append(reparam.fuse_identity_bn(branch, self.groups, self.kernel_size))
            else:
                assert isinstance(branch, ConvNorm)
                kernels.append(reparam.pad_kernel(branch.kernel(), self.kernel_size))
        return reparam.sum_kernels(kernels)

    def reparameterize(self) -> None:
        """Replace the branches by one convolution; nothing happens if that is done already."""
        if self.reparam_conv is None:
            self.reparam_conv = reparam.conv_with(self.kernel(), like=self.main_conv)
            self.identity = self.conv_kxk = self.conv_scale = None


class ReparamLargeKernelConv(nn.Module):
    """Grouped large-kernel convolution with stride; the training form adds a 3x3 branch. Then optional SE, GELU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int,
        groups: int,
        is_fused: bool,
        has_se: bool,
        has_act: bool,
    ) -> None:
        super().__init__()
        self.kernel_size = (kernel, kernel)
        # timm 1.0.31 SqueezeExcite(rd_ratio=0.25, rd_divisor=8): a quarter, rounded to a multiple of 8, at least 8.
        reduced = max(8, int(out_channels * 0.25 + 4) // 8 * 8)
        self.se = SqueezeExcite(out_channels, reduced) if has_se else nn.Identity()
        self.act = nn.GELU() if has_act else nn.Identity()
        self.reparam_conv: nn.Conv2d | None = None
        self.large_conv: ConvNorm | None = None
        self.small_conv: ConvNorm | None = None
        if is_fused:
            self.reparam_conv = _conv(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=True)
        else:
            self.large_conv = ConvNorm(in_channels, out_channels, kernel, stride=stride, groups=groups)
            self.small_conv = ConvNorm(in_channels, out_channels, 3, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            x = self.reparam_conv(x)
        else:
            assert self.large_conv is not None and self.small_conv is not None
            x = self.large_conv(x) + self.small_conv(x)
        return self.act(self.se(x))  # type: ignore[no-any-return]

    def kernel(self) -> reparam.Kernel:
        """Both branches as one convolution's weight and bias."""
        assert self.large_conv is not None and self.small_conv is not None
        small = reparam.pad_kernel(self.small_conv.kernel(), self.kernel_size)
        return reparam.sum_kernels([self.large_conv.kernel(), small])

    def reparameterize(self) -> None:
        """Replace both branches by one convolution; nothing happens if that is done already."""
        if self.reparam_conv is None:
            assert self.large_conv is not None
            self.reparam_conv = reparam.conv_with(self.kernel(), like=self.large_conv.conv)
            self.large_conv = self.small_conv = None


class PatchEmbed(nn.Module):
    """Downsampling between stages: 7x7 with stride 2 (each input channel feeds C_out / C_in outputs), then 1x1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, is_fused: bool, has_se: bool, has_act: bool
    ) -> None:
        super().__init__()
        large = ReparamLargeKernelConv(
            in_channels,
            out_channels,
            kernel,
            stride=2,
            groups=in_channels,
            is_fused=is_fused,
            has_se=has_se,
            has_act=has_act,
        )
        self.proj = nn.Sequential(large, MobileOneBlock(out_channels, out_channels, 1, is_fused=is_fused))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class RepMixer(nn.Module):
    """FastViT's token mixer. Training form: ``x + g * (mixer(x) - norm(x))``; inference form: one depthwise conv."""

    def __init__(self, channels: int, kernel: int, *, layer_scale_init: float, is_fused: bool) -> None:
        super().__init__()
        self.reparam_conv: nn.Conv2d | None = None
        self.norm: MobileOneBlock | None = None
        self.mixer: MobileOneBlock | None = None
        self.layer_scale: LayerScale | None = None
        if is_fused:
            self.reparam_conv = _conv(channels, channels, kernel, groups=channels, bias=True)
            return
        self.norm = MobileOneBlock(
            channels, channels, kernel, groups=channels, is_fused=False, has_act=False, has_kxk=False, has_scale=False
        )
        self.mixer = MobileOneBlock(channels, channels, kernel, groups=channels, is_fused=False, has_act=False)
        self.layer_scale = LayerScale(channels, layer_scale_init)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.reparam_conv(x)  # type: ignore[no-any-return]
        assert self.norm is not None and self.mixer is not None and self.layer_scale is not None
        return x + self.layer_scale(self.mixer(x) - self.norm(x))  # type: ignore[no-any-return]

    def kernel(self) -> reparam.Kernel:
        """The whole mixer, its identity included, as one convolution's weight and bias."""
        assert self.norm is not None and self.mixer is not None and self.layer_scale is not None
        return reparam.fuse_repmixer(self.mixer.kernel(), self.norm.kernel(), self.layer_scale.gamma)

    def reparameterize(self) -> None:
        """Replace mixer, norm and layer scale by one convolution; nothing happens if that is done already."""
        if self.reparam_conv is None:
            assert self.mixer is not None
            self.reparam_conv = reparam.conv_with(self.kernel(), like=self.mixer.main_conv)
            self.norm = self.mixer = self.layer_scale = None


class ConvFFN(nn.Module):
    """Depthwise 7x7 with BatchNorm, 1x1 to `ratio` times the channels, GELU, 1x1 back."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        # The BatchNorm stays in released checkpoints; only FastViTHD.deploy() folds it.
        self.conv: nn.Module = ConvNorm(channels, channels, 7, groups=channels)
        self.conv.conv = FfnConv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.fc1 = FfnConv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = FfnConv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.conv(x))))  # type: ignore[no-any-return]

    def fold(self, layer_scale: Tensor) -> None:
        """Deploy time only: BatchNorm into the 7x7, `layer_scale` (C, 1, 1) into the last projection."""
        assert isinstance(self.conv, ConvNorm)
        self.conv = reparam.conv_with(self.conv.kernel(), like=self.conv.conv)
        reparam.scale_layer(self.fc2, layer_scale)


class RepMixerBlock(nn.Module):
    """RepMixer, then a residual ConvFFN under a layer scale."""

    def __init__(
        self, channels: int, *, mixer_kernel: int, ratio: float, layer_scale_init: float, is_fused: bool
    ) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, mixer_kernel, layer_scale_init=layer_scale_init, is_fused=is_fused)
        self.mlp = ConvFFN(channels, ratio)
        self.layer_scale: nn.Module = LayerScale(channels, layer_scale_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))  # type: ignore[no-any-return]

    def fold(self) -> None:
        """Deploy time only: what can be multiplied into a neighbor is."""
        assert isinstance(self.layer_scale, LayerScale)
        self.mlp.fold(self.layer_scale.gamma)
        self.layer_scale = nn.Identity()


class RepConditionalPosEnc(nn.Module):
    """Conditional positional encoding: ``conv(x) + x`` in training, one depthwise convolution at inference."""

    def __init__(self, channels: int, kernel: tuple[int, int], *, is_fused: bool) -> None:
        super().__init__()
        conv = _conv(channels, channels, kernel, groups=channels, bias=True)
        self.reparam_conv: nn.Conv2d | None = conv if is_fused else None
        self.pos_enc: nn.Conv2d | None = None if is_fused else conv

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is not None:
            return self.reparam_conv(x)  # type: ignore[no-any-return]
        assert self.pos_enc is not None
        return self.pos_enc(x) + x  # type: ignore[no-any-return]

    def reparameterize(self) -> None:
        """Fold the skip into the convolution; nothing happens if that is done already."""
        if self.reparam_conv is None:
            assert self.pos_enc is not None
            self.reparam_conv = reparam.conv_with(reparam.fuse_skip(self.pos_enc), like=self.pos_enc)
            self.pos_enc = None
