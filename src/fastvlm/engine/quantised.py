"""A decoder's quantised weights in a file of their own, beside the checkpoint or anywhere else.

The file holds each product of the decoder in the order in which the decoder asks for its linear layers, the head last,
in the form that the kernels read. It is mapped into memory, not read: 4-bit weights are used where they lie, 8-bit ones
are laid out once for the kernel. Norms, biases and the embedding stay in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastvlm.engine.int4 import GROUP_SIZES, Int4Weight, int4_linear, quantise_int4
from fastvlm.engine.int8 import Int8Weight, int8_linear, quantise_int8
from fastvlm.engine.linear import Linear, plain_linear
from fastvlm.errors import CheckpointError, ConfigError

__all__ = [
    "QUANTISED_FILE",
    "QuantisationError",
    "QuantisationOptions",
    "QuantisedWeights",
    "load_quantised",
    "quantise_linears",
    "save_quantised",
]

QUANTISED_FILE = "fastvlm_quantised.safetensors"  # the usual name, in a model's folder
_FORMAT = "1"
_AGAIN = "Quantise the model again."
Weight = Int8Weight | Int4Weight
Bits = Literal[4, 8]


@dataclass(frozen=True)
class QuantisationOptions:
    """How weights are rounded.

    Attributes:
        bits: 8 (a scale an output channel) or 4 (a scale and a zero a group of inputs) for the layers.
        group_size: inputs that share a scale at 4 bits: 32, 64 or 128.
        head_bits: the same for the head, whose rounding is heard at once.

    Raises:
        ConfigError: other numbers.
    """

    bits: Bits = 8
    group_size: int = 32
    head_bits: Bits = 8

    def __post_init__(self) -> None:
        for name in ("bits", "head_bits"):
            if getattr(self, name) not in (4, 8):
                raise ConfigError(f"QuantisationOptions.{name} is {getattr(self, name)!r}; expected 4 or 8.")
        if self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ConfigError(f"QuantisationOptions.group_size is {self.group_size!r}; expected one of {sizes}.")


@dataclass(frozen=True)
class QuantisationError:
    """Distance of the rounded weights from the given ones: norm of the difference over norm of the weight."""

    mean: float
    largest: float


@dataclass(frozen=True)
class QuantisedWeights:
    """Every product of a decoder, in its order, and what rounding cost."""

    weights: tuple[Weight, ...]
    options: QuantisationOptions
    error: QuantisationError

    @property
    def num_bytes(self) -> int:
        """Memory of all weights with their scales."""
        return sum(tensor.nbytes for weight in self.weights for tensor in _tensors(weight).values())

    def make_linear(self) -> Callable[[Tensor, Tensor | None], Linear]:
        """A factory for one decoder: gives the stored weights in their order, whatever the values of those it gets.

        It raises CheckpointError if the decoder asks for other shapes, or for more layers, than are stored.
        """
        remaining = iter(self.weights)

        def make(weight: Tensor, bias: Tensor | None) -> Linear:
            stored = next(remaining, None)
            shape = None if stored is None else _shape(stored)
            if stored is None or shape != tuple(weight.shape):
                raise CheckpointError(
                    f"The decoder asks for a layer of {list(weight.shape)}; the quantised weights have "
                    f"{'no more' if shape is None else list(shape)} there. They are another model's, or another "
                    f"version's. {_AGAIN}"
                )
            return int8_linear(stored, bias) if isinstance(stored, Int8Weight) else int4_linear(stored, bias)

        return make


def quantise_linears(
    build: Callable[[Callable[[Tensor, Tensor | None], Linear]], object],
    options: QuantisationOptions,
    *,
    vocab_size: int,
) -> QuantisedWeights:
    """The weights that `build` asks a factory for, rounded.

    Args:
        build: makes a decoder with the factory it is given, such as ``lambda make: Decoder(model, 1, 8, make)``.
        options: how to round.
        vocab_size: outputs by which the head is known.
    """
    weights: list[Weight] = []
    errors: list[float] = []

    def keep(weight: Tensor, bias: Tensor | None) -> Linear:
        bits = options.head_bits if weight.shape[0] == vocab_size else options.bits
        rounded = _round(weight.detach().cpu(), bits, options.group_size)
        weights.append(rounded)
        errors.append(_relative_error(weight, rounded))
        return plain_linear(weight, bias)

    build(keep)
    error = QuantisationError(mean=sum(errors) / len(errors), largest=max(errors))
    return QuantisedWeights(tuple(weights), options, error)


def _round(weight: Tensor, bits: Bits, group_size: int) -> Weight:
    """8 bits also where the inputs are no whole number of groups."""
    if bits == 8 or weight.shape[1] % group_size:
        return quantise_int8(weight)
    return quantise_int4(weight, group_size)


def _relative_error(weight: Tensor, rounded: Weight) -> float:
    exact = weight.detach().cpu().float()
    return float((rounded.dequantise().float() - exact).norm() / exact.norm().clamp_min(1e-30))


def _shape(weight: Weight) -> tuple[int, int]:
    if isinstance(weight, Int4Weight):
        return (weight.out_features, weight.in_features)
    return (weight.values.shape[0], weight.values.shape[1])


def _tensors(weight: Weight) -> dict[str, Tensor]:
    if isinstance(weight, Int4Weight):
        return {"packed": weight.packed, "scales_and_zeros": weight.scales_and_zeros}
    return {"values": weight.values, "scales": weight.scales}


def save_quantised(quantised: QuantisedWeights, file: str | Path) -> None:
    """Write `quantised` to `file` (safetensors); a file of that name is replaced."""
    tensors: dict[str, Tensor] = {}
    outputs: list[int] = []
    for index, weight in enumerate(quantised.weights):
        outputs.append(_shape(weight)[0])
        tensors |= {f"{index:04d}.{name}": tensor.contiguous() for name, tensor in _tensors(weight).items()}
    about = {
        "format": _FORMAT,
        "options": asdict(quantised.options),
        "error": asdict(quantised.error),
        "out_features": outputs,
    }
    save_file(tensors, file, metadata={"fastvlm_quantised": json.dumps(about)})


def load_quantised(file: str | Path) -> QuantisedWeights:
    """The weights in `file`, mapped into memory: pages are read when they are used.

    Raises:
        CheckpointError: no such file, or not one of :func:`save_quantised`.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = _about((opened.metadata() or {}).get("fastvlm_quantised"), file)
            outputs = about["out_features"]
            weights = tuple(_read(opened, index, count) for index, count in enumerate(outputs))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as quantised weights: {error}. {_AGAIN}") from error
    return QuantisedWeights(weights, QuantisationOptions(**about["options"]), QuantisationError(**about["error"]))


def _about(metadata: str | None, file: str | Path) -> Any:
    """What the file says of itself."""
    about = json.loads(metadata) if metadata else {}
    found = about.get("format")
    if found != _FORMAT:
        raise CheckpointError(f"{file} has the quantised format {found!r}; this version reads {_FORMAT!r}. {_AGAIN}")
    return about


def _read(opened: Any, index: int, out_features: int) -> Weight:
    names = set(opened.keys())
    name = f"{index:04d}"
    if f"{name}.packed" in names:
        return Int4Weight(
            opened.get_tensor(f"{name}.packed"), opened.get_tensor(f"{name}.scales_and_zeros"), out_features
        )
    return Int8Weight(opened.get_tensor(f"{name}.values"), opened.get_tensor(f"{name}.scales"))
