"""FastViTHD: image (B, 3, H, W) in [0, 1] -> feature map (B, 3072, ceil(H/64), ceil(W/64)).

Three convolutional stages (RepMixer), two attention stages, a depthwise expansion with squeeze-excite. The state
dict is that of timm's ``fastvit_mci3``, in the inference form (628 entries as published) and in the training form
(1,529 entries).

Source: paper section 3.2; apple/ml-fastvlm at 592b4ad, ``llava/model/multimodal_encoder/mobileclip/mci.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastvlm.encoder_config import EncoderConfig, StageConfig
from fastvlm.model.attention import AttentionBlock
from fastvlm.model.blocks import (
    FfnConv2d,
    LayerScale,
    MobileOneBlock,
    PatchEmbed,
    RepConditionalPosEnc,
    RepMixerBlock,
)

M = TypeVar("M", bound=nn.Module)
FFN_AND_ATTENTION_STD = 0.02  # truncated normal, timm 1.0.31 `ConvMlp._init_weights` and `FastVit._init_weights`


class FastViTHDStage(nn.Module):
    """Optional downsampling, optional positional encoding, then `depth` blocks of one kind."""

    # transformers switches gradient checkpointing on wherever it finds this attribute, and sets the function.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, stage: StageConfig, config: EncoderConfig) -> None:
        super().__init__()
        is_fused = config.is_inference_form
        self.downsample: nn.Module = nn.Identity()
        if stage.has_downsample:
            self.downsample = PatchEmbed(
                stage.in_channels,
                stage.channels,
                config.downsample_kernel,
                is_fused=is_fused,
                has_se=stage.has_se,
                has_act=config.has_downsample_activation,
            )
        self.pos_emb: nn.Module = nn.Identity()
        if stage.position_kernel is not None:
            self.pos_emb = RepConditionalPosEnc(stage.channels, stage.position_kernel, is_fused=is_fused)
        self.blocks = nn.Sequential(*(self._block(stage, config) for _ in range(stage.depth)))

    @staticmethod
    def _block(stage: StageConfig, config: EncoderConfig) -> nn.Module:
        if stage.token_mixer == "attention":
            return AttentionBlock(stage.channels, ratio=stage.mlp_ratio, layer_scale_init=config.layer_scale_init)
        return RepMixerBlock(
            stage.channels,
            mixer_kernel=config.repmixer_kernel,
            ratio=stage.mlp_ratio,
            layer_scale_init=config.layer_scale_init,
            is_fused=config.is_inference_form,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_emb(self.downsample(x))
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                # The block runs twice, so its BatchNorms see the same statistics twice: the running estimate moves a
                # little faster, what the block computes does not change.
                x = self._gradient_checkpointing_func(block.__call__, x)
            else:
                x = block(x)
        return x


class FastViTHD(nn.Module):
    """The encoder. ``FastViTHD()`` is the published one, with random weights.

    Args:
        config: architecture; None for the published one.
    """

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = EncoderConfig() if config is None else config
        is_fused = config.is_inference_form
        width, last = config.stages[0].in_channels, config.stages[-1].channels

        def stem_block(in_channels: int, kernel: int, stride: int, groups: int) -> MobileOneBlock:
            has_scale = config.has_stem_scale_branch
            return MobileOneBlock(
                in_channels, width, kernel, stride=stride, groups=groups, is_fused=is_fused, has_scale=has_scale
            )

        self.stem = nn.Sequential(stem_block(3, 3, 2, 1), stem_block(width, 3, 2, width), stem_block(width, 1, 1, 1))
        self.stages = nn.Sequential(*(FastViTHDStage(stage, config) for stage in config.stages))
        self.final_conv = MobileOneBlock(
            last,
            config.hidden_size,
            3,
            groups=last,
            is_fused=is_fused,
            se_channels=max(1, int(config.hidden_size / 16 + 0.5)),
        )
        if not next(self.parameters()).is_meta:  # nothing to fill there
            for module in self.modules():
                init_weights(module)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Feature map (B, hidden_size, ceil(H/stride), ceil(W/stride)) of images (B, 3, H, W) in [0, 1]."""
        return self.final_conv(self.stages(self.stem(pixel_values)))  # type: ignore[no-any-return]

    def forward_with_stages(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As ``forward``, with the output map of every stage (before the final expansion) as the second value."""
        x = self.stem(pixel_values)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.final_conv(x), tuple(maps)

    @property
    def is_fused(self) -> bool:
        """True in the inference form."""
        return self.final_conv.reparam_conv is not None

    def reparameterize(self) -> FastViTHD:
        """Turn the training form into the inference form, in place; the config follows. Returns self."""
        for child in self.children():
            _reparameterize_blocks(child)
        self.config.model_args = {**(self.config.model_args or {}), "inference_mode": True}
        return self

    def deploy(self) -> FastViTHD:
        """A copy for inference alone: fused, BatchNorms folded into the 7x7s, layer scales into the projections.

        This encoder stays as it is, so that checkpoints are always written from it; the copy's state dict is no
        checkpoint's.
        """
        return deployed(self).reparameterize()  # its blocks are fused by now; the config follows


def deployed(part: M, dtype: torch.dtype | None = None) -> M:
    """A copy of an encoder, or of any part of it, as ``FastViTHD.deploy`` makes it; computed and held in `dtype`.

    Args:
        part: stays as it is.
        dtype: None for the part's own.
    """
    # Handed over as what deepcopy has copied already, so that a turned part is copied once, not twice.
    known: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(dtype, copy=True)) for p in part.parameters()}
    copied = copy.deepcopy(part, known).eval()
    if dtype is not None:
        copied.to(dtype)  # BatchNorms' statistics
    _reparameterize_blocks(copied)
    for block in copied.modules():
        if isinstance(block, (RepMixerBlock, AttentionBlock)):
            block.fold()
    return copied.requires_grad_(False)


def _reparameterize_blocks(module: Any) -> None:
    """Fuse the outermost blocks that can be, below and including `module`; they fuse what is inside them."""
    if hasattr(module, "reparameterize"):
        module.reparameterize()
        return
    for child in module.children():
        _reparameterize_blocks(child)


def init_weights(module: nn.Module, std: float = FFN_AND_ATTENTION_STD) -> bool:
    """Fill the weights of one module; False if it is of a kind this function leaves alone.

    The functions of `transformers.initialization` skip tensors that came from a checkpoint.
    """
    from transformers import initialization as init  # noqa: PLC0415  # only new weights need it

    match module:
        case FfnConv2d() | nn.Linear():
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        case nn.Conv2d():
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # PyTorch's own default for convolutions
            if module.bias is not None:
                init.zeros_(module.bias)
        case LayerScale():
            init.constant_(module.gamma, module.init)
        case _:
            return False
    return True
