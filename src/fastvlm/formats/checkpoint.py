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

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RotaryPositions:
    """Rotary position embedding for a head width of E.

    Attributes:
        frequencies: (E / 2,) float32; position p rotates pair i by the angle ``p * frequencies[i]``.
        scaling: factor on cosines and sines; 1 for default positions.
    """

    frequencies: Tensor
    scaling: float = 1.0

    @classmethod
    def default(cls, theta: float, head_dim: int) -> RotaryPositions:
        """Qwen2's default positions, computed as in transformers' ``Qwen2RotaryEmbedding``."""
        steps = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return cls(1.0 / (theta**steps))

    def tables(self, num_positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (num_positions, E) in `dtype`; both halves of a row are equal."""
        angles = torch.arange(num_positions, device=self.frequencies.device)[:, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A complete FastVLM checkpoint.

    Attributes:
        config: the model configuration.
        tensors: canonical name -> tensor, read on access: mapped from its file if possible, in the checkpoint's dtype.
            A tied head has no entry. Weights in `rounded` appear here dequantized.
        processor: image processor, tokenizer and chat template.
        stop_token_ids: token ids that end every reply.
        dtype: the decoder's floating dtype.
        rotary: rotary position embedding of the decoder.
        rounded: names of the weights of one linear layer (:func:`fastvlm.formats.names.linear_groups`) -> the layer's
            weight in 8 or 4 bits.
        bits: of `rounded`; None if nothing is rounded.
        layers: canonical name of a weight -> layer with its own code (an unmerged adapter, weights packed by another
            library); only live models have them.
        files: the files that `tensors` are mapped from, watched for changes; None if they are not mapped.
        changed: names of tensors that differ from the checkpoint on which :meth:`with_tensors` was called.
        key: the same object for checkpoints with the same weights.
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
    """Tensors that are read on access.

    Args:
        names: all names.
        read: returns the tensor of a name.
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
    """Mapping with the entries of `upper`, then those of `lower`; lazy entries stay lazy."""

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
