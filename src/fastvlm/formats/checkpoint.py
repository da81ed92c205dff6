"""An opened FastVLM checkpoint: the record from which an engine is built.

Made by :func:`fastvlm.formats.opening.open_folder` without transformers, and by `to_checkpoint` of a live transformers
model. A backend copies the weights into its own layout and never modifies the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from fastvlm.config import ModelConfig
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.rounding import RoundedWeight
from fastvlm.processing.processor import Processor

__all__ = ["Checkpoint", "HasCheckpoint", "RotaryPositions"]

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RotaryPositions:
    """Rotary position embedding of heads E wide.

    Attributes:
        frequencies: (E / 2,) float32; position p turns pair i by the angle ``p * frequencies[i]``.
        scaling: factor on cosines and sines; 1 for default positions.
    """

    frequencies: Tensor
    scaling: float = 1.0

    @classmethod
    def default(cls, theta: float, head_dim: int) -> RotaryPositions:
        """Qwen2's default positions, in the arithmetic of transformers' ``Qwen2RotaryEmbedding``."""
        steps = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return cls(1.0 / (theta**steps))

    def tables(self, num_positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (num_positions, E) in `dtype`, each half of a row the same."""
        angles = torch.arange(num_positions, device=self.frequencies.device)[:, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A whole FastVLM.

    Attributes:
        config: sizes, and the placeholder's id.
        tensors: canonical name -> tensor, read when asked for: mapped from its file where that is possible, of the
            dtype that the checkpoint has. A head that is the embedding table has no entry. Weights that are in
            `rounded` too come as they are after rounding.
        processor: image processor, tokenizer and chat template.
        stop_token_ids: ids that end every reply.
        dtype: the decoder's floating dtype.
        rotary: positions of the decoder.
        rounded: names of weights that one linear layer is made of (:func:`fastvlm.formats.names.linear_groups`) -> that
            layer's weight in 8 or 4 bits.
        bits: of `rounded`; None where nothing is rounded.
        layers: canonical name of a weight -> layer that computes with it by code of its own (an adapter that is not
            merged, weights packed by another library); only a live model has such.
        files: the files that `tensors` are mapped from, watched for changes; None if they are not.
        changed: names of tensors that differ from the checkpoint that :meth:`with_tensors` was called on.
        key: the same object for records of the same weights.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    processor: Processor
    stop_token_ids: frozenset[int]
    dtype: torch.dtype
    rotary: RotaryPositions
    rounded: Mapping[tuple[str, ...], RoundedWeight] = field(default_factory=lambda: MappingProxyType({}))
    bits: int | None = None
    layers: Mapping[str, Layer] = field(default_factory=lambda: MappingProxyType({}))
    files: MappedFiles | None = None
    changed: frozenset[str] = frozenset()
    key: object = field(default_factory=object, repr=False)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Checkpoint:
        """The same checkpoint with some tensors replaced, as by a merged adapter; engines of both share the rest."""
        changed = self.changed | tensors.keys()
        return replace(self, tensors=Overlay(tensors, self.tensors), changed=changed, key=object())


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for.

    Args:
        names: all of them.
        read: gives the tensor of a name.
    """

    def __init__(self, names: frozenset[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Overlay(Mapping[str, Tensor]):
    """`upper` where it has a name, else `lower`; what `lower` reads lazily stays lazy."""

    def __init__(self, upper: Mapping[str, Tensor], lower: Mapping[str, Tensor]) -> None:
        self._upper, self._lower = upper, lower

    def __getitem__(self, name: str) -> Tensor:
        return self._upper[name] if name in self._upper else self._lower[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lower.keys() | self._upper.keys())

    def __len__(self) -> int:
        return len(self._lower.keys() | self._upper.keys())


class HasCheckpoint(Protocol):
    """A live model that an engine can be built from, such as this package's transformers models."""

    def to_checkpoint(self, processor: Processor) -> Checkpoint:
        """A checkpoint with the model's weights (shared, not copied) and settings."""
