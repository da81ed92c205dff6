"""File format of quantized checkpoints: 8- and 4-bit linear layers in one file, all other tensors in a second one.

A folder made by ``fastvlm quantize`` has two files instead of ``model.safetensors``. One holds the decoder's linear
layers in the kernels' layout (``rounding.py``), in the decoder's order with the head last, under the names of their
weights; then those of the image encoder, if they are rounded (``encoder_rounding.py``). The other holds all remaining
tensors unchanged. No tensor is stored twice, except that a tied head's table is kept unrounded for the embedding.

transformers does not open such a folder (it finds no weights), so it cannot run a decoder with random numbers.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastvlm.config import ENCODER_BITS, EncoderBits
from fastvlm.config_limits import dtype_name
from fastvlm.errors import CheckpointError, ConfigError
from fastvlm.formats.encoder_rounding import is_encoder_linear, weight_shape
from fastvlm.formats.names import HEAD, layer_linears, linear_groups
from fastvlm.formats.quantized_metadata import METADATA_KEY, QUANTIZED_FILE, REST_FILE, parse_metadata
from fastvlm.formats.rounding import GROUP_SIZES, Int4Weight, Int8Weight, RoundedWeight

REST_OF = "fastvlm_rest_of"  # metadata of REST_FILE: the digest of the linears that it belongs to
_FORMATS = ("3", "4")  # the second has layers of the encoder, which earlier versions must not take for floats
_AGAIN = "Quantize the model again."
_LARGEST = 65504.0  # of a scale or zero: the largest number of float16, which no checkpoint's weights reach
Bits = Literal[4, 8]
HeadBits = Literal[4, 8, 16]


@dataclass(frozen=True)
class QuantizationOptions:
    """How weights are rounded.

    Attributes:
        bits: 8 (one scale per output channel) or 4 (a scale and a zero per group of inputs) for the layers.
        group_size: inputs that share a scale at 4 bits: 32, 64 or 128.
        head_bits: the same for the head, which is more sensitive to rounding.
        encoder_bits: 8 for the image encoder's linear layers, or 16 to leave them as they are.

    Raises:
        ConfigError: other numbers.
    """

    bits: Bits = 8
    group_size: int = 32
    head_bits: HeadBits = 8
    encoder_bits: EncoderBits = 16

    known_head_bits: ClassVar[tuple[int, ...]] = (4, 8)

    def __post_init__(self) -> None:
        if self.encoder_bits not in ENCODER_BITS:
            raise ConfigError(f"QuantizationOptions.encoder_bits is {self.encoder_bits!r}; expected 16 or 8.")
        for name, known in (("bits", (4, 8)), ("head_bits", self.known_head_bits)):
            if getattr(self, name) not in known:
                expected = " or ".join(map(str, known))
                raise ConfigError(f"QuantizationOptions.{name} is {getattr(self, name)!r}; expected {expected}.")
        if self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ConfigError(f"QuantizationOptions.group_size is {self.group_size!r}; expected one of {sizes}.")


@dataclass(frozen=True)
class QuantizationError:
    """Relative error of the decoder's rounded weights: norm of the difference over norm of the weight."""

    mean: float
    largest: float


@dataclass(frozen=True)
class RoundedLinear:
    """One rounded weight: `names` of the weights that it concatenates, and the rows of each."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    weight: RoundedWeight


@dataclass(frozen=True)
class QuantizedWeights:
    """Every linear layer of a decoder in its order, then rounded ones of the image encoder, and the rounding error.

    Attributes:
        linears: the rounded weights.
        options, error: how they were rounded, and the error; None if the file does not say it.
        dtype: their dtype before rounding; the dtype of :meth:`tensor`.
        has_tied_head: True if the head was the embedding table, which is then kept unrounded for the embedding.
    """

    linears: tuple[RoundedLinear, ...]
    options: QuantizationOptions
    error: QuantizationError | None
    dtype: torch.dtype = torch.bfloat16
    has_tied_head: bool = False

    @property
    def weights(self) -> tuple[RoundedWeight, ...]:
        """The rounded weights alone."""
        return tuple(linear.weight for linear in self.linears)

    @property
    def num_bytes(self) -> int:
        """Memory of all weights with their scales in bytes."""
        return sum(tensor.nbytes for weight in self.weights for tensor in weight.tensors.values())

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each weight in this file; without a tied head."""
        return {
            name: weight_shape(name, rows, linear.weight.in_features)
            for linear in self.linears
            for name, rows in zip(linear.names, linear.rows, strict=True)
            if not (self.has_tied_head and name == HEAD)
        }

    @functools.cached_property
    def digest(self) -> str:
        """Identifies these weights: a hash of their names and scales."""
        found = hashlib.sha256()
        for linear in self.linears:
            scales = list(linear.weight.tensors.values())[-1]
            found.update(json.dumps([linear.names, linear.rows]).encode())
            found.update(scales.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def tensor(self, name: str) -> Tensor:
        """The rounded weight of this name, in `dtype` and its shape in :attr:`shapes`."""
        linear = next(linear for linear in self.linears if name in linear.names)
        parts = torch.split(linear.weight.dequantize().to(self.dtype), list(linear.rows))
        part = parts[linear.names.index(name)]
        return part.view(weight_shape(name, *part.shape))


def save_quantized(quantized: QuantizedWeights, file: str | Path) -> None:
    """Write `quantized` to `file` (safetensors); a file of that name is replaced."""
    tensors: dict[str, Tensor] = {}
    for index, weight in enumerate(quantized.weights):
        tensors |= {_key(index, name): tensor.contiguous() for name, tensor in weight.tensors.items()}
    about = {
        "format": _FORMATS[quantized.options.encoder_bits == 8],
        "options": {name: value for name, value in asdict(quantized.options).items() if name != "encoder_bits"},
        "error": asdict(quantized.error or QuantizationError(0.0, 0.0)),
        "dtype": dtype_name(quantized.dtype),
        "has_tied_head": quantized.has_tied_head,
        "products": [{"names": linear.names, "rows": linear.rows} for linear in quantized.linears],
        "digest": quantized.digest,
    }
    save_file(tensors, file, metadata={METADATA_KEY: json.dumps(about)})


def load_quantized(file: str | Path) -> QuantizedWeights:
    """The weights in `file`, mapped into memory: pages are read when they are used.

    Raises:
        CheckpointError: no such file, truncated, or not written by :func:`save_quantized`.
    """
    return _loaded(file)[0]


def _loaded(file: str | Path) -> tuple[QuantizedWeights, Any]:
    """The weights in `file` and its metadata."""
    try:
        with safe_open(file, framework="pt") as opened:
            about = parse_metadata((opened.metadata() or {}).get(METADATA_KEY), _FORMATS)
            encoder_bits: EncoderBits = 16 if about["format"] == _FORMATS[0] else 8
            options = QuantizationOptions(**about["options"], encoder_bits=encoder_bits)
            error = QuantizationError(**about["error"])
            linears = _linears(opened, about["products"], options)
        dtype = getattr(torch, about["dtype"])
        return QuantizedWeights(linears, options, error, dtype, about["has_tied_head"]), about
    except (OSError, SafetensorError, ValueError) as problem:
        reason = str(problem).rstrip(".")
        raise CheckpointError(f"{file} cannot be read as quantized weights: {reason}. {_AGAIN}") from problem


def quantized_weights_of(folder: Path) -> QuantizedWeights | None:
    """The quantized linear layers in a folder made by ``fastvlm quantize``; None for any other folder.

    Raises:
        CheckpointError: one of the two files is missing, truncated, or belongs to another checkpoint.
    """
    file, rest = folder / QUANTIZED_FILE, folder / REST_FILE
    if not rest.is_file():
        return None
    quantized, about = _loaded(file)
    try:
        with safe_open(rest, framework="pt") as opened:
            belongs_to = (opened.metadata() or {}).get(REST_OF)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{rest} cannot be read: {error}. {_AGAIN}") from error
    if belongs_to != about["digest"]:
        raise CheckpointError(f"{file.name} and {rest.name} in {folder} are of different checkpoints. {_AGAIN}")
    return quantized


def _linears(opened: Any, described: Sequence[Any], options: QuantizationOptions) -> tuple[RoundedLinear, ...]:
    """Every linear layer that the metadata describes; `opened` must hold their tensors and no other."""
    found = [tuple(linear["names"]) for linear in described]
    encoder = _encoder_names(found) if options.encoder_bits == 8 else []
    expected = linear_groups((len(found) - len(encoder) - 1) // len(layer_linears(0))) + encoder
    if found != expected:
        pairs = zip_longest(found, expected)
        odd, right = next((odd, right) for odd, right in pairs if odd != right)
        raise ValueError(f"its linear layers are {str(odd)[:200]} where a decoder has {right or 'no more'}")
    stored = set(opened.keys())
    linears = tuple(_read(opened, stored, index, linear, options) for index, linear in enumerate(described))
    known = {_key(index, name) for index, linear in enumerate(linears) for name in linear.weight.tensors}
    if extra := sorted(stored - known):
        raise ValueError(f"it has a tensor {extra[0]!r}, which belongs to no linear layer")
    return linears


def _encoder_names(found: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The names of `found` that are layers of the encoder, each once and both layers of an FFN."""
    names = [name for names in found for name in names if is_encoder_linear(name)]
    for name in names:
        other = name.replace(".fc1.", ".fc2.") if ".fc1." in name else name.replace(".fc2.", ".fc1.")
        if other not in names:
            raise ValueError(f"it has {name} without {other}")
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"its encoder has {'a layer twice' if names else 'no rounded layers'}")
    return [(name,) for name in names]


def _read(opened: Any, stored: Set[str], index: int, linear: Any, options: QuantizationOptions) -> RoundedLinear:
    def tensor(name: str) -> Tensor:
        if _key(index, name) not in stored:
            raise ValueError(f"the tensor {_key(index, name)!r} is missing")
        found: Tensor = opened.get_tensor(_key(index, name))
        return found

    names, rows = tuple(linear["names"]), tuple(linear["rows"])
    weight: RoundedWeight
    try:
        if _key(index, "packed") in stored:
            weight = Int4Weight(tensor("packed"), tensor("scales_and_zeros"), sum(rows))
        else:
            weight = Int8Weight(tensor("values"), tensor("scales"))
        _check_weight(names[0], weight, sum(rows), options)
    except CheckpointError as error:
        raise ValueError(f"linear {index:04d} ({', '.join(names)}): {error}") from error
    return RoundedLinear(names, rows, weight)


def _check_weight(name: str, weight: RoundedWeight, num_rows: int, options: QuantizationOptions) -> None:
    """Raise if `weight` does not match `options`, or has impossible scales."""
    if isinstance(weight, Int4Weight) and is_encoder_linear(name):
        raise CheckpointError("it has 4 bits; expected 8 in the encoder.")
    if weight.out_features != num_rows:
        raise CheckpointError(f"values has {weight.out_features} rows; expected {num_rows}.")
    scales = weight.scales if isinstance(weight, Int8Weight) else weight.scales_and_zeros
    if isinstance(weight, Int4Weight) and weight.group_size != options.group_size:
        raise CheckpointError(f"scales_and_zeros has groups of {weight.group_size}; expected {options.group_size}.")
    steps = scales if isinstance(weight, Int8Weight) else scales[..., 0]
    low, high = map(float, scales.aminmax())  # NaN, if one is
    if not max(-low, high) <= _LARGEST or not float(steps.contiguous().amin()) > 0:
        raise CheckpointError(
            f"its scales are {low:g} to {high:g}; expected finite ones, above 0 and up to {_LARGEST:g}: it is damaged."
        )


def _key(index: int, name: str) -> str:
    """Name of a tensor of linear layer number `index` in the file."""
    return f"{index:04d}.{name}"
