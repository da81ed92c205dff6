"""FastViTHD inference for CPUs: the same results as the training module, in a faster order and layout.

Maps are NHWC, (B, H, W, C) contiguous, so that a 1x1 convolution is a linear layer on rows of channels. Differences
from :class:`~fastvlm.model.fastvithd.FastViTHD`, which is the reference:

- BatchNorms and layer scales are folded (``FastViTHD.deploy()``), attention's scale into the query's weight;
- 1x1 convolutions are linear layers, packed, with fused bias and GELU where that is fastest;
- the stem runs on bands of rows, so that no map exceeds the memory that is kept between calls;
- FFNs run on tiles of rows whose 4x wider hidden map stays in cache, and add to their residual in place;
- a convolution with m outputs a channel becomes m depthwise ones, because oneDNN has a fast kernel only for those;
- attention runs on as many heads at once as keep their scores in cache, or, with AMX, is torch's own.

docs/performance.md has the gain of each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.backends.cpu.encoder_int8 import Int8Block, Int8Linear, RoundedWeights, int8_block
from fastvlm.backends.cpu.linear import PackedLinear, gelu_, many_rows_linear, packed_linear
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.generators import finished
from fastvlm.backends.linear import Activation, PlainLinear
from fastvlm.backends.native.encoder_linear import EncoderLinear
from fastvlm.backends.native.kernels import NativeDepthwise, native_kernels
from fastvlm.encoder_config import ATTENTION_HEAD_DIM
from fastvlm.model.attention import AttentionBlock
from fastvlm.model.blocks import PatchEmbed, SqueezeExcite
from fastvlm.model.fastvithd import FastViTHD, deployed

M = TypeVar("M", bound=nn.Module)
Step = Callable[[Tensor], Tensor]
# Rows (positions) a thread works on at a time: 0.75 MB of hidden map in the first stage, 1.5 MB in the second.
TILE_ROWS_PER_THREAD = 1024
# The same with products in tile registers: there, reading the weights again for each tile takes longer than writing
# the hidden map to memory. Above 32 MB of it, that memory would be fresh from the system at every call.
TILE_ROWS_PER_THREAD_AMX = 4096
BAND_PIXELS = 1 << 18  # pixels of images that make a band of the stem: 12 MB of its widest map
SCORE_BYTES = 2 << 20  # attention scores that are held at a time: one head of 1024 tokens in bfloat16


class FastEncoder:
    """FastViTHD for inference. Features equal those of `encoder` within 1e-4 in float32, 2e-2 in bfloat16 (norms).

    Args:
        encoder: in any form; it is copied and not modified.
        dtype: dtype of the computation, float32 or bfloat16; None for the encoder's. Folding uses at least float32.
        rounded: the 8-bit weight of a name of `encoder`, which is then used instead of the encoder's; None for none.

    Attributes:
        steps: the operations on the NHWC map, in order.
    """

    def __init__(
        self, encoder: FastViTHD, dtype: torch.dtype | None = None, rounded: RoundedWeights = lambda _: None
    ) -> None:
        first = next(encoder.parameters())
        self.dtype, self.device, self.config = dtype or first.dtype, first.device, encoder.config
        # A part at a time, in memory that the part before it has left.
        stem = [step for block in encoder.stem for step in _mobile_one(_folded(block), self.dtype)]
        self.steps: list[Step] = [InBands(stem)]
        for index, stage in enumerate(encoder.stages):
            self.steps += _stage(stage, self.dtype, rounded, f"stages.{index}.")
        self.steps += _mobile_one(_folded(encoder.final_conv), self.dtype)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Feature map (B, hidden_size, ceil(H/64), ceil(W/64)) of images (B, 3, H, W) in [0, 1], any floating dtype.

        Its memory is NHWC, so turning it into visual tokens (B, N, hidden_size) copies nothing.
        """
        return finished(self.slices(pixel_values))

    @torch.no_grad()
    def slices(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """The same in steps: the caller may pause or abandon it after each; the map is the generator's return value."""
        x = pixel_values.to(self.dtype).permute(0, 2, 3, 1).contiguous()
        for step in self.steps:
            x = step(x)
            yield
        return x.permute(0, 3, 1, 2)


def _folded(part: M) -> M:
    return deployed(part, torch.float32)


def _stage(stage: Any, dtype: torch.dtype, rounded: RoundedWeights, prefix: str) -> list[Step]:
    steps: list[Step] = []
    if isinstance(stage.downsample, PatchEmbed):
        steps += _patch_embed(_folded(stage.downsample), dtype)
    if not isinstance(stage.pos_emb, nn.Identity):
        steps.append(Convolution(_folded(stage.pos_emb).reparam_conv, dtype))
    for index, whole in enumerate(stage.blocks):
        block = _folded(whole)
        int8 = int8_block(whole, block, f"{prefix}blocks.{index}.", rounded)
        if isinstance(block, AttentionBlock):
            steps.append(_Attention(block, dtype, int8))
        else:
            steps.append(Convolution(block.token_mixer.reparam_conv, dtype))
        steps.append(Ffn(block.mlp, dtype, int8))
    return steps


def _patch_embed(embed: PatchEmbed, dtype: torch.dtype) -> list[Step]:
    """The 7x7 leaves its channels in computation order; SE and the 1x1 after it are permuted to that order."""
    large: Any = embed.proj[0]
    conv = Convolution(large.reparam_conv, dtype, keeps_order=False)
    steps: list[Step] = [conv]
    if isinstance(large.se, SqueezeExcite):
        steps.append(_Gate(large.se, dtype, conv.order))
    if isinstance(large.act, nn.GELU):
        steps.append(gelu_)
    return [*steps, *_mobile_one(embed.proj[1], dtype, conv.order)]


def _mobile_one(block: Any, dtype: torch.dtype, order: Tensor | None = None) -> list[Step]:
    """Convolution, SE and GELU; `order` (C_in,) is the order in which the input's channels come."""
    conv, has_act = block.reparam_conv, isinstance(block.act, nn.GELU)
    gates: list[Step] = [_Gate(block.se, dtype)] if isinstance(block.se, SqueezeExcite) else []
    if _is_pointwise(conv):
        fused: Activation = "gelu" if has_act and not gates else "none"
        steps: list[Step] = [_pointwise(conv, dtype, fused, order), *gates]
        return [*steps, gelu_] if has_act and gates else steps
    return [Convolution(conv, dtype), *gates, *([gelu_] if has_act else [])]


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1


def _pointwise(
    conv: nn.Conv2d, dtype: torch.dtype, activation: Activation = "none", order: Tensor | None = None
) -> PackedLinear | PlainLinear | EncoderLinear:
    """A 1x1 convolution as a linear layer on channels."""
    weight = conv.weight.flatten(1)
    weight = weight if order is None else weight[:, order]
    return many_rows_linear(weight.to(dtype), _cast(conv.bias, dtype), activation)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


class Convolution:
    """A convolution on NHWC; with m > 1 outputs a channel, m depthwise ones, each a weight and a bias in `kernels`.

    `order` says where the channels of the result stand in the original's: channel i of the result is ``order[i]`` of
    the original. It is None if they are in the original's order, as they are with `keeps_order`.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, keeps_order: bool = True) -> None:
        self._stride, self._padding = conv.stride, _padding(conv)
        self._kernel_height, self._kernel_width = conv.kernel_size
        is_depthwise = conv.in_channels == conv.groups
        multiple = conv.out_channels // conv.in_channels if is_depthwise else 1
        self._groups = conv.groups
        bias = _cast(conv.bias, dtype)
        weight = conv.weight.to(dtype)
        kernels = [
            (
                weight[i::multiple].contiguous(memory_format=torch.channels_last),
                None if bias is None else bias[i::multiple],
            )
            for i in range(multiple)
        ]
        self._set_kernels(kernels)
        order = torch.arange(conv.out_channels, device=weight.device).reshape(-1, multiple).T.flatten()
        self.order = order if multiple > 1 and not keeps_order else None
        self._restore = order.argsort() if multiple > 1 and keeps_order else None

    def with_kernels(self, kernels: list[tuple[Tensor, Tensor | None]]) -> Convolution:
        """The same convolution with other weights and biases, of the same shapes."""
        other = copy.copy(self)
        other._set_kernels(kernels)
        return other

    def _set_kernels(self, kernels: list[tuple[Tensor, Tensor | None]]) -> None:
        self.kernels, ((weight, bias), *others) = kernels, kernels
        native = native_kernels(weight.dtype)
        is_native = native is not None and not others and weight.device.type == "cpu"
        is_native = is_native and NativeDepthwise.suits(weight, self._stride, self._padding, self._groups)
        self._native = NativeDepthwise(native, weight, bias) if native is not None and is_native else None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) -> (B, H', W', C_out), a new tensor."""
        if self._native is not None and self._native.takes(x):
            return self._native(x)
        return self._convolve(x, self._padding)

    def rows(self, x: Tensor, height: int, first: int, stop: int) -> Tensor:
        """Rows `first` to `stop` of the result; `x` holds the rows that :meth:`rows_needed` gives for `height`."""
        start, end = self._reach(first, stop)
        above, below = max(0, -start), max(0, end - height)
        if above == self._padding[0]:  # oneDNN pads for nothing; rows that it makes below are too many
            return self._convolve(x, self._padding)[:, : stop - first]
        if above or below:
            x = F.pad(x, (0, 0, 0, 0, above, below))
        return self._convolve(x, (0, self._padding[1]))

    def out_height(self, height: int) -> int:
        """H' of H."""
        return (height + 2 * self._padding[0] - self._kernel_height) // self._stride[0] + 1

    def rows_needed(self, height: int, first: int, stop: int) -> tuple[int, int]:
        """The range of input rows (of `height`) from which result rows `first` to `stop` are computed."""
        start, end = self._reach(first, stop)
        return max(0, start), min(end, height)

    def _reach(self, first: int, stop: int) -> tuple[int, int]:
        """As :meth:`rows_needed`, rows of padding included."""
        start = first * self._stride[0] - self._padding[0]
        return start, start + (stop - first - 1) * self._stride[0] + self._kernel_height

    def _convolve(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        width = x.shape[2]
        if self._groups == 1 and width + 2 * padding[1] < self._kernel_width + self._stride[1]:
            # One column of results: there oneDNN 3.12 reads memory that nobody wrote (AMX, few channels). Make two.
            return self._convolve(F.pad(x, (0, 0, 0, self._stride[1])), padding)[:, :, :1]
        x = x.permute(0, 3, 1, 2)
        maps = [F.conv2d(x, weight, bias, self._stride, padding, groups=self._groups) for weight, bias in self.kernels]
        parts = [y.permute(0, 2, 3, 1).contiguous() for y in maps]  # it is, but for some maps of one row or column
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if self._restore is None else y[..., self._restore]


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        raise TypeError(f"Padding is {conv.padding!r}; expected numbers.")
    return conv.padding


class InBands:
    """Steps that start with a convolution, computed for one band of result rows after another.

    The stem's widest map is 50 MB at 1024 px: as a whole it would be fresh memory from the system at every call, which
    costs more time than the arithmetic. Steps other than convolutions must treat each row alone.
    """

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C'), a new tensor."""
        heights = [x.shape[1]]
        for step in self.steps:
            heights.append(step.out_height(heights[-1]) if isinstance(step, Convolution) else heights[-1])
        height, pixels = heights[-1], x.shape[:3].numel()
        size = height if x.device.type != "cpu" else max(1, BAND_PIXELS * height // pixels)
        bands = [self._rows(x, heights, start, min(start + size, height)) for start in range(0, height, size)]
        return bands[0] if len(bands) == 1 else torch.cat(bands, 1)

    def _rows(self, x: Tensor, heights: list[int], first: int, stop: int) -> Tensor:
        """Rows `first` to `stop` of the result of the first ``len(heights) - 1`` steps on `x`."""
        if len(heights) == 1:
            return x[:, first:stop]
        step, before = self.steps[len(heights) - 2], heights[:-1]
        if not isinstance(step, Convolution):
            return step(self._rows(x, before, first, stop))
        rows = self._rows(x, before, *step.rows_needed(before[-1], first, stop))
        return step.rows(rows, before[-1], first, stop)


class _Gate:
    """Squeeze-excite, in place; `order` as in :class:`Convolution`."""

    def __init__(self, se: SqueezeExcite, dtype: torch.dtype, order: Tensor | None = None) -> None:
        self._first = _pointwise(se.fc1, dtype, order=order)
        weight, bias = se.fc2.weight.flatten(1).to(dtype), _cast(se.fc2.bias, dtype)
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        self._second = packed_linear(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C), each channel times its gate."""
        gate = self._second(self._first(x.mean((1, 2))).relu_()).sigmoid_()
        return x.mul_(gate[:, None, None])


class Ffn:
    """``x + ConvFFN(x)`` with `conv` (7x7), `widen` with GELU, `narrow`; `x` may be overwritten."""

    def __init__(self, mlp: Any, dtype: torch.dtype, int8: Int8Block | None = None) -> None:
        self.conv = Convolution(mlp.conv, dtype)
        self.int8 = None if int8 is None else int8.ffn
        if self.int8 is None:
            self.widen, self.narrow = _pointwise(mlp.fc1, dtype, "gelu"), _pointwise(mlp.fc2, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C)."""
        inputs, outputs = self.conv(x).flatten(0, 2), x.flatten(0, 2)
        if self.int8 is not None:
            widen, narrow = self.int8
            return widen.ffn(narrow, inputs, outputs).view(x.shape)
        if isinstance(self.widen, EncoderLinear) and isinstance(self.narrow, EncoderLinear):
            return self.widen.ffn(self.narrow, inputs, outputs).view(x.shape)
        size = tile_rows(x)
        if len(inputs) <= size:
            return self.narrow.added(self.widen(inputs), outputs).view(x.shape)
        for rows, residual in zip(torch.split(inputs, size), torch.split(outputs, size), strict=True):
            result = self.narrow.added(self.widen(rows), residual)
            if result is not residual:
                residual.copy_(result)
        return x


def tile_rows(x: Tensor) -> int:
    """Rows of a tile on the device of `x`; all rows on devices other than a CPU."""
    if x.device.type != "cpu":
        return x.shape[:3].numel()
    size = TILE_ROWS_PER_THREAD_AMX if cpu_kernels().has_tiles(x.dtype) else TILE_ROWS_PER_THREAD
    return size * torch.get_num_threads()


class _Attention:
    """``x + attention(norm(x))``, in place."""

    def __init__(self, block: AttentionBlock, dtype: torch.dtype, int8: Int8Block) -> None:
        mixer, norm = block.token_mixer, block.norm
        self._norm = (norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
        qkv = mixer.qkv.weight.clone()
        qkv[: qkv.shape[1]] *= ATTENTION_HEAD_DIM**-0.5
        self._qkv = int8.qkv or many_rows_linear(qkv.to(dtype), None)
        self._proj = int8.proj or many_rows_linear(mixer.proj.weight.to(dtype), mixer.proj.bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C)."""
        batch, height, width, channels = x.shape
        weight, bias, eps = self._norm
        normed = F.layer_norm(x, (channels,), weight, bias, eps)
        native = self._qkv.kernels if isinstance(self._qkv, EncoderLinear) else native_kernels(x.dtype)
        if native is not None and isinstance(self._qkv, (EncoderLinear, Int8Linear)):
            heads = self._qkv.heads(normed.view(-1, channels))
            mixed = native.attention(heads.view(3, -1, *heads.shape[1:]), batch)
        else:
            qkv = self._qkv(normed).reshape(batch, height * width, 3, -1, ATTENTION_HEAD_DIM)
            mixed = _attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2)
        return self._proj.added(mixed.reshape(x.shape), x)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax-weighted values (B, heads, N, 32); the query is scaled already."""
    if query.device.type != "cpu" or cpu_kernels().has_tiles(query.dtype):
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    shape, num_tokens = query.shape, query.shape[2]
    size = max(1, SCORE_BYTES // (num_tokens * num_tokens * query.element_size()))
    query, key, value = (tensor.flatten(0, 1).contiguous() for tensor in (query, key, value))
    mixed = torch.empty_like(query)
    for q, k, v, out in zip(*(torch.split(t, size) for t in (query, key, value, mixed)), strict=True):
        torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v, out=out)
    return mixed.view(shape)
