"""Compiled kernels of one level (:data:`fastvlm.backends.native.library.LEVELS`), and their Python interface.

They are optional: a missing or stale library falls back to PyTorch silently; a corrupt one warns first.
``library.py`` says where the library is searched for.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvlm.backends.native.address import address
from fastvlm.backends.native.library import chosen_levels, distrust, find_library, is_whole
from fastvlm.backends.native.packed_layer import PackedLayer, PanelLayout

if TYPE_CHECKING:
    from fastvlm.backends.native.decoder import NativeModel

_BLOCK = 32  # `kDepthwiseChannels` in cpp/depthwise.hpp
_KERNEL_SIZES = (3, 7)
HEAD_WIDTH = 32  # `kHeadWidth` in cpp/encoder_linear.hpp and cpp/amx/attention.hpp
MOST_ROWS = 512  # `kMaxRows` in cpp/gemm.hpp
Epilogue = Literal["plain", "gelu", "added", "heads"]
_EPILOGUES: dict[Epilogue, int] = {"plain": 0, "gelu": 1, "added": 2, "heads": 3}  # `Epilogue` in cpp/interface.hpp
_DTYPES = {torch.bfloat16: 0, torch.float32: 1}  # `Dtype` in cpp/interface.hpp
_TILE_LEVEL = "amx"
_BUILD_AGAIN = "To build them again: fastvlm build-kernels"
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "has_threads": ([], _INT),
    "gelu": ([_POINTER, _SIZE, _INT, _INT], None),
    "depthwise": ([*[_POINTER] * 4, *[_SIZE] * 4, _INT, _INT, _INT], _INT),
    "panel_layout": ([_INT, _POINTER], None),
    "linear": ([_POINTER, _POINTER, *[_SIZE] * 3, _POINTER, _POINTER, *[_INT] * 3], None),
    "ffn": ([_POINTER, _POINTER, *[_SIZE] * 3, *[_POINTER] * 4, _INT, _INT], None),
    "attention": ([_POINTER, _POINTER, *[_SIZE] * 3, _INT, _INT], None),
    "gemm": ([_POINTER, _POINTER, _POINTER, _SIZE, _INT, _INT], None),
    "decode": ([*[_POINTER] * 4, _SIZE, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT, _INT], None),
    "int8_panel_outputs": ([], _INT),
    "int8_input_unit": ([], _INT),
    "int8_linear": ([_POINTER, _POINTER, _SIZE, _POINTER, _INT, _INT, _INT], None),
    "int8_ffn": ([_POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _INT, _INT], None),
}
_TILE_SIGNATURES: dict[str, tuple[list[Any], Any]] = {"may_use_tiles": ([], _INT)}


class NativeKernels:
    """The functions of one level of an opened library, for contiguous CPU tensors; they use torch's number of threads.

    Args:
        library: from :func:`open_library`.
        level: one of its levels, which this CPU can run.

    Raises:
        AttributeError: the library has no such level.
    """

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.level = level
        functions = dict(self._functions(library, _SIGNATURES))
        if level == _TILE_LEVEL:
            functions |= self._functions(library, _TILE_SIGNATURES)
        self._functions_by_name = functions
        self.has_threads = bool(functions["has_threads"]())
        self.has_tiles = level == _TILE_LEVEL and bool(functions["may_use_tiles"]())
        self._gelu, self._depthwise = functions["gelu"], functions["depthwise"]
        self._linear, self._ffn, self._attention = functions["linear"], functions["ffn"], functions["attention"]
        self._layouts = {dtype: self._layout(dtype) for dtype in self.dtypes}
        self._gemm, self._decode = functions["gemm"], functions["decode"]

    def _functions(self, library: ctypes.CDLL, signatures: dict[str, tuple[list[Any], Any]]) -> Iterator[Any]:
        for name, (arguments, result) in signatures.items():
            function = getattr(library, f"fastvlm_{self.level}_{name}")
            function.argtypes, function.restype = arguments, result
            yield name, function

    def function(self, name: str) -> Any:
        """The C function of this level that is called ``fastvlm_LEVEL_name``."""
        return self._functions_by_name[name]

    @staticmethod
    def dtype_number(dtype: torch.dtype) -> int | None:
        """What the C functions call `dtype`; None if they do not know it."""
        return _DTYPES.get(dtype)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes of the tensors that these functions take."""
        return (torch.bfloat16,) if self.level == _TILE_LEVEL else (torch.float32, torch.bfloat16)

    def takes(self, x: Tensor) -> bool:
        """True if these functions accept `x`."""
        return x.dtype in self.dtypes and x.device.type == "cpu" and x.is_contiguous() and x.numel() > 0

    def gelu_(self, x: Tensor) -> Tensor:
        """Exact GELU in place, within rounding and 1.5e-6. `x` must satisfy :meth:`takes`.

        NaN stays NaN, and minus infinity becomes NaN.
        """
        self._gelu(address("x", x, self._dtype(x)), x.numel(), _DTYPES[x.dtype], torch.get_num_threads())
        return x

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
        """The convolution of :class:`NativeDepthwise`; `weight` and `bias` in its layout."""
        x_at = address("x", x, self._dtype(x), None, None, None, None)
        padded, y = -(-x.shape[3] // _BLOCK) * _BLOCK, torch.empty_like(x)
        pointers = (
            x_at,
            y.data_ptr(),
            address("weight", weight, torch.float32, kernel**2, padded),
            address("bias", bias, torch.float32, padded),
        )
        if self._depthwise(*pointers, *x.shape, kernel, _DTYPES[x.dtype], torch.get_num_threads()):
            raise ValueError(f"kernel is {kernel}; expected one of {_KERNEL_SIZES}.")
        return y

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of `x` if these functions take it, else one for the message that says what is expected."""
        return x.dtype if x.dtype in self.dtypes else self.dtypes[0]

    def panel_layout(self, dtype: torch.dtype) -> PanelLayout:
        """How :meth:`linear` expects weights of `dtype`, one of :attr:`dtypes`."""
        return self._layouts[dtype]

    def _layout(self, dtype: torch.dtype) -> PanelLayout:
        sizes = (_INT * 4)()
        self.function("panel_layout")(_DTYPES[dtype], sizes)
        groups, rows, columns, depth = sizes
        return PanelLayout((groups, rows, columns, depth), is_padded=self.level != _TILE_LEVEL)

    def linear(self, x: Tensor, layer: PackedLayer, epilogue: Epilogue, out: Tensor) -> Tensor:
        """Compute ``x @ weight.T + bias`` into `out` (rows, outputs), with the given epilogue.

        Epilogues: plain, exact GELU, added to the content of `out`, or "heads" with `out` (outputs / 32, rows, 32).

        Args:
            x: (rows, inputs); `x` and `out` must satisfy :meth:`takes`.
            layer: in the layout and dtype of these kernels.

        Raises:
            ValueError: tensors of other dtypes or shapes.
        """
        dtype, outputs = self._dtype(x), layer.outputs
        x_at = address("x", x, dtype, None, layer.inputs)
        rows = len(x)
        shape = (outputs // HEAD_WIDTH, rows, HEAD_WIDTH) if epilogue == "heads" else (rows, outputs)
        pointers = x_at, address("out", out, dtype, *shape)
        addresses, options = self._addresses(layer, dtype), (_EPILOGUES[epilogue], _DTYPES[dtype])
        self._linear(*pointers, rows, layer.inputs, outputs, *addresses, *options, torch.get_num_threads())
        return out

    def ffn(self, x: Tensor, widen: PackedLayer, narrow: PackedLayer, out: Tensor) -> Tensor:
        """Add ``narrow(gelu(widen(x)))`` to `out` (rows, channels); layers as in :meth:`linear`."""
        dtype, channels, hidden = self._dtype(x), widen.inputs, widen.outputs
        if (narrow.outputs, narrow.inputs) != (channels, hidden):
            found = f"narrow has {narrow.inputs} inputs and {narrow.outputs} outputs"
            raise ValueError(f"{found}; expected {hidden} and {channels}, as widen has outputs and inputs.")
        pointers = address("x", x, dtype, None, channels), address("out", out, dtype, len(x), channels)
        layers = *self._addresses(widen, dtype), *self._addresses(narrow, dtype)
        self._ffn(*pointers, len(x), channels, hidden, *layers, _DTYPES[dtype], torch.get_num_threads())
        return out

    def _addresses(self, layer: PackedLayer, dtype: torch.dtype) -> tuple[int, int]:
        """Addresses of weight and bias."""
        layout = self.panel_layout(dtype)
        shape = layout.shape(layer.outputs, layer.inputs)
        if not layout.takes(layer.outputs, layer.inputs):
            expected = f"multiples of {layout.outputs} and {layout.inputs}"
            raise ValueError(f"layer has {layer.outputs} outputs and {layer.inputs} inputs; expected {expected}.")
        weight_at = address("weight", layer.weight, dtype, *shape)
        return weight_at, address("bias", layer.bias, torch.float32, shape[0] * layout.outputs)

    def attention(self, qkv: Tensor, batch: int) -> Tensor:
        """Attention (B, N, heads, 32) of `qkv` (3, heads, B N, 32) within each image; queries are already scaled."""
        dtype = self._dtype(qkv)
        qkv_at = address("qkv", qkv, dtype, 3, None, None, HEAD_WIDTH)
        if batch < 1 or qkv.shape[2] % batch:
            raise ValueError(f"batch is {batch}; expected a divisor of the {qkv.shape[2]} tokens.")
        heads, tokens = qkv.shape[1], qkv.shape[2] // batch
        mixed = qkv.new_empty(batch, tokens, heads, HEAD_WIDTH)
        self._attention(qkv_at, mixed.data_ptr(), batch, tokens, heads, _DTYPES[dtype], torch.get_num_threads())
        return mixed

    def multiply(self, weights: Any, rows: Tensor, y: Tensor) -> None:
        """Compute the layer's outputs for `rows` (R, in) into `y` (R, out), both contiguous; R is at least 1.

        `weights` is a ``NativeLinearWeights`` (:mod:`fastvlm.backends.native.linear`) of these sizes.
        """
        dtype = self._dtype(rows)
        rows_at = address("rows", rows, dtype, None, weights.inputs)
        y_at = address("y", y, dtype, len(rows), weights.outputs)
        self._gemm(ctypes.byref(weights), rows_at, y_at, len(rows), _DTYPES[dtype], torch.get_num_threads())

    def decode(
        self,
        model: NativeModel,
        embeds: Tensor,
        places: Tensor,
        tables: Sequence[Tensor],
        results: Tensor,
        *,
        are_consecutive: bool,
        has_logits: bool,
    ) -> None:
        """Run all decoder layers on `embeds` (T, D) and write `results`, both contiguous; T is 1 to 512.

        Args:
            model: a ``NativeModel`` (:mod:`fastvlm.backends.native.decoder`) of the dtype of `embeds`.
            places: (2, T) slots and positions, int64, within the model's cache and `tables`.
            tables: cosines and sines (positions, 1, E) of all positions.
            results: with `has_logits` the logits (T, V), else the last token's hidden state (1, D).
            are_consecutive: the tokens follow one another in one slot; else they are of any slots, each at its place.

        Raises:
            ValueError: tensors of other dtypes or shapes.
        """
        num_tokens, dtype = len(embeds), self._dtype(embeds)
        slots, positions = places.contiguous()
        shape = (num_tokens, model.head.contents.outputs) if has_logits else (1, model.width)
        cos, sin = tables
        pointers = (
            address("embeds", embeds, dtype, num_tokens, model.width),
            address("slots", slots, torch.int64, num_tokens),
            address("positions", positions, torch.int64, num_tokens),
        )
        table_pointers = (
            address("cosines", cos, dtype, None, 1, model.head_width),
            address("sines", sin, dtype, len(cos), 1, model.head_width),
        )
        results_at = address("results", results, dtype, *shape)
        if num_tokens > MOST_ROWS:
            raise ValueError(f"embeds has {num_tokens} tokens; expected {MOST_ROWS} at most.")
        kinds = 0 if has_logits else 1  # `Result` in cpp/decoder_pass.hpp
        self._decode(
            ctypes.byref(model),
            *pointers,
            num_tokens,
            are_consecutive,
            *table_pointers,
            kinds,
            results_at,
            _DTYPES[dtype],
            torch.get_num_threads(),
        )


class NativeDepthwise:
    """A 3x3 or 7x7 depthwise convolution with stride 1 and same padding; sums are float32.

    Args:
        kernels: from :func:`native_kernels`.
        weight: (C, 1, K, K), any floating dtype.
        bias: (C,), or None.
    """

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None) -> None:
        channels, self._kernel = len(weight), weight.shape[-1]
        padded = -(-channels // _BLOCK) * _BLOCK
        self._kernels = kernels
        self._weight = weight.new_zeros(self._kernel**2, padded, dtype=torch.float32)
        self._weight[:, :channels] = weight.flatten(1).T
        self._bias = weight.new_zeros(padded, dtype=torch.float32)
        if bias is not None:
            self._bias[:channels] = bias

    @staticmethod
    def suits(weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], groups: int) -> bool:
        """True if this class supports a convolution of this `weight` (C_out, C_in / groups, K, K')."""
        channels, inputs, *size = weight.shape
        is_depthwise = inputs == 1 and channels == groups
        is_same = tuple(stride) == (1, 1) and size[0] == size[1] and tuple(padding) == (size[0] // 2,) * 2
        return is_depthwise and is_same and size[0] in _KERNEL_SIZES and weight.dtype in _DTYPES

    def takes(self, x: Tensor) -> bool:
        """True if `x` can be convolved here."""
        return self._kernels.takes(x)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> a new tensor of the same shape; `x` must satisfy :meth:`takes`."""
        return self._kernels.depthwise(x, self._weight, self._bias, self._kernel)


def native_kernels(dtype: torch.dtype = torch.bfloat16) -> NativeKernels | None:
    """The best kernels of this machine for tensors of `dtype`, or None if there are none or their results are wrong."""
    kernels = next((kernels for kernels in all_kernels() if dtype in kernels.dtypes), None)
    return kernels if kernels is not None and _is_right_or_told(kernels, dtype) else None


@functools.cache
def _is_right_or_told(kernels: NativeKernels, dtype: torch.dtype) -> bool:
    if results_are_right(kernels, dtype):
        return True
    what = f"The kernels of the level {kernels.level} give wrong results in {dtype}"
    warnings.warn(f"{what}. PyTorch's kernels are used instead. {_BUILD_AGAIN}", stacklevel=3)
    return False


@functools.cache
def all_kernels() -> tuple[NativeKernels, ...]:
    """The kernels of every level of this machine, the best first; none if not built, damaged, or disabled.

    A library that other users may have written is not opened; a warning says so.

    Raises:
        UsageError: the environment variable FASTVLM_KERNELS is not a level of this CPU.
    """
    levels = chosen_levels()
    path = find_library() if levels else None
    if path is None:
        return ()
    try:
        if reason := distrust(path):
            raise ValueError(reason)
        found = open_library(path, levels)
    except (OSError, AttributeError, ValueError) as error:
        what = f"{path} cannot be used: {error}"
        warnings.warn(f"{what}. PyTorch's kernels are used instead. {_BUILD_AGAIN}", stacklevel=2)
        return ()
    return tuple(kernels for kernels in found if kernels.has_threads or torch.get_num_threads() == 1)


def open_library(path: Path, levels: Sequence[str]) -> tuple[NativeKernels, ...]:
    """Open the sealed library `path`: the kernels of each of `levels`, whose results are not checked yet.

    A level whose tile registers the system does not grant is left out.

    Raises:
        OSError: it cannot be read or loaded.
        ValueError: it is damaged.
        AttributeError: a function is missing.
    """
    if not is_whole(path.read_bytes()):
        raise ValueError("it is damaged: its digest is another one")
    library = ctypes.CDLL(str(path))
    found = [NativeKernels(library, level) for level in levels]
    return tuple(kernels for kernels in found if kernels.has_tiles or kernels.level != _TILE_LEVEL)


def results_are_right(kernels: NativeKernels, dtype: torch.dtype) -> bool:
    """True if the kernels give torch's results, for numbers that are nearly exact in bfloat16."""
    x = (torch.arange(4 * 5 * 33) % 17 / 4 - 2).reshape(1, 4, 5, 33).to(dtype)
    pairs = [(kernels.gelu_(x.clone()), F.gelu(x.float())), *_convolved(kernels, x)]
    pairs += _multiplied(kernels, dtype)
    return all(torch.allclose(result.float(), expected, rtol=1e-2, atol=1e-2) for result, expected in pairs)


def _convolved(kernels: NativeKernels, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for size in _KERNEL_SIZES:
        weight = (torch.arange(33 * size * size) % 5 / 4 - 0.5).reshape(33, 1, size, size)
        bias = torch.arange(33) / 8
        expected = F.conv2d(x.float().permute(0, 3, 1, 2), weight, bias, 1, size // 2, groups=33).permute(0, 2, 3, 1)
        yield NativeDepthwise(kernels, weight, bias)(x), expected


def _multiplied(kernels: NativeKernels, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    x = (torch.arange(17 * 64) % 13 / 8 - 0.75).reshape(17, 64).to(dtype)
    weight = (torch.arange(96 * 64) % 11 / 64 - 0.08).reshape(96, 64).to(dtype)
    bias, layout = torch.arange(96) / 64, kernels.panel_layout(dtype)
    widen, narrow = PackedLayer.of(weight, bias, layout), PackedLayer.of(weight.T, None, layout)
    hidden = F.linear(x.float(), weight.float(), bias)
    yield kernels.linear(x, widen, "plain", x.new_empty(17, 96)), hidden
    yield kernels.ffn(x, widen, narrow, x.clone()), x.float() + F.gelu(hidden) @ weight.float()
    qkv = (torch.arange(3 * 2 * 35 * 32) % 19 / 16 - 0.5).reshape(3, 2, 35, 32).to(dtype)
    query, key, value = qkv[:, None].float().unbind(0)
    yield kernels.attention(qkv, 1), F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2)
