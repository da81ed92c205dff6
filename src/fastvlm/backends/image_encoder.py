"""Image encoder and projector of a backend: pixel_values (I, 3, H, W) in [0, 1] -> image_embeds (I, N, D).

I images, N visual tokens an image, C encoder channels, D decoder width.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Set
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastvlm.backends.cpu.encoder import FastEncoder
from fastvlm.backends.cuda_graphs import GraphedEncode
from fastvlm.backends.page_release import release_pages
from fastvlm.config import EncoderBits
from fastvlm.errors import CheckpointError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.differences import Differences
from fastvlm.formats.encoder_rounding import round_encoder_weight, rounded_in_encoder, weight_shape
from fastvlm.formats.names import ENCODER, PROJECTOR
from fastvlm.formats.rounding import Int8Weight
from fastvlm.model.fastvithd import FastViTHD
from fastvlm.model.projector import FastVlmMultiModalProjector, as_feature_tokens

M = TypeVar("M", bound=nn.Module)


class ImageEncoder(Protocol):
    """Encodes and projects images."""

    @property
    def is_stepped(self) -> bool:
        """True if it pauses quickly, so that images should be passed one by one."""

    def __call__(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D), the return value; the work may be paused or abandoned at each yield."""

    def replica(self) -> ImageEncoder:
        """An encoder on the same weights, for another thread."""


class SteppedImageEncoder:
    """The encoder for CPUs, in steps; see :class:`FastEncoder`.

    Args:
        checkpoint: not modified; pages of its files are released after they have been copied.
        dtype: dtype of the computation.
        bits: 8 to round the encoder's weights that are not stored so; see ``formats/encoder_rounding.py``.
        base: an encoder of the checkpoint that ``checkpoint.changed`` refers to; unchanged parts are shared.
    """

    is_stepped = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        bits: EncoderBits = 16,
        base: SteppedImageEncoder | None = None,
    ) -> None:
        if base is None or _has_changed(checkpoint, ENCODER):
            module = encoder_of(checkpoint, is_rounded=True)
            rounded = rounded_in_encoder(checkpoint.tensors) if bits == 8 else ()
            self.encoder = FastEncoder(module, dtype, partial(_rounded, checkpoint, frozenset(rounded)))
            for weight in module.parameters():
                release_pages(weight)
        else:
            self.encoder = base.encoder
        self.projector: FastVlmMultiModalProjector
        if base is None or _has_changed(checkpoint, PROJECTOR):
            self.projector = projector_of(checkpoint).to(dtype)
        else:
            self.projector = base.projector

    def replica(self) -> SteppedImageEncoder:
        """Itself, because it holds weights only."""
        return self

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """See :class:`ImageEncoder`."""
        feature_map = yield from self.encoder.slices(pixel_values)
        embeds: Tensor = self.projector(as_feature_tokens(feature_map))
        return embeds


class TorchImageEncoder:
    """Encoder and projector as PyTorch modules on any device; with CUDA graphs if `has_graphs`."""

    is_stepped = False

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, has_graphs: bool = False
    ) -> None:
        self._dtype, self._device = dtype, device
        self._encoder, self._projector = (
            encoder_of(checkpoint).to(device, dtype),
            projector_of(checkpoint).to(device, dtype),
        )
        self._has_graphs = has_graphs
        self._encode = GraphedEncode(self._forward, device) if has_graphs else self._forward

    def replica(self) -> TorchImageEncoder:
        """An encoder on the same modules with its own graphs."""
        other = copy.copy(self)
        other._encode = GraphedEncode(other._forward, self._device) if self._has_graphs else other._forward
        return other

    def __call__(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """See :class:`ImageEncoder`."""
        yield from ()
        return self._encode(pixel_values.to(self._device))

    @torch.no_grad()
    def _forward(self, pixel_values: Tensor) -> Tensor:
        embeds: Tensor = self._projector(as_feature_tokens(self._encoder(pixel_values.to(self._dtype))))
        return embeds


def images_dtype(dtype: torch.dtype) -> torch.dtype:
    """The encoder's dtype for a decoder in `dtype`; float32 for float16, which the encoder's activations overflow."""
    return torch.float32 if dtype == torch.float16 else dtype


def _has_changed(checkpoint: Checkpoint, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in checkpoint.changed)


def _rounded(checkpoint: Checkpoint, asked: Set[str], name: str) -> Int8Weight | None:
    """The 8-bit weight of `name` of the encoder: as it is stored, or rounded now if it is `asked` for; or None."""
    name = f"{ENCODER}{name}"
    stored = checkpoint.rounded.get((name,))
    if isinstance(stored, Int8Weight):
        return stored
    if name not in asked or any(other.startswith(ENCODER) for other, *_ in checkpoint.rounded):
        return None
    return round_encoder_weight(checkpoint.tensors[name])


def encoder_of(checkpoint: Checkpoint, *, is_rounded: bool = False) -> FastViTHD:
    """The encoder; with `is_rounded`, weights stored in 8 bits are zeros, because :func:`_rounded` gives them."""
    with torch.device("meta"):
        module = FastViTHD(checkpoint.config.vision_config)
    stored = {name for (name, *_) in checkpoint.rounded if name.startswith(ENCODER)} if is_rounded else set()
    return _with_tensors(module, checkpoint, ENCODER, stored)


def projector_of(checkpoint: Checkpoint) -> FastVlmMultiModalProjector:
    """The projector, in eval mode, on the checkpoint's own tensors."""
    with torch.device("meta"):
        module = FastVlmMultiModalProjector(checkpoint.config)
    return _with_tensors(module, checkpoint, PROJECTOR)


def _with_tensors(module: M, checkpoint: Checkpoint, prefix: str, absent: Set[str] = frozenset()) -> M:
    """`module` with the checkpoint's tensors (not copied) and zeros in place of `absent`, in eval mode."""
    tensors = checkpoint.tensors
    own = {
        name.removeprefix(prefix): _zeros(checkpoint, name) if name in absent else tensors[name].detach()
        for name in tensors
        if name.startswith(prefix)
    }
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    differences = Differences.between(expected, {name: tuple(tensor.shape) for name, tensor in own.items()})
    if differences:
        raise CheckpointError(differences.report(f"Of the checkpoint, {prefix}*"))
    # Step counters of BatchNorms, which some files do not have.
    own |= {name: torch.zeros(shape, dtype=torch.int64) for name, shape in expected.items() if name not in own}
    module.load_state_dict(own, assign=True)
    return module.requires_grad_(False).eval()


def _zeros(checkpoint: Checkpoint, name: str) -> Tensor:
    """Zeros of the shape of a weight stored in 8 bits, which take no memory."""
    weight = checkpoint.rounded[name,]
    shape = (weight.out_features, weight.in_features)
    return torch.zeros((), dtype=checkpoint.dtype).expand(weight_shape(name, *shape))
