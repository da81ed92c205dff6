"""The three graphs of an exported model: images -> visual tokens, token ids -> embeddings, embeddings -> logits.

I images of H x W pixels, N visual tokens an image, B sequences, T tokens, D decoder width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.backends.image_encoder import encoder_of, projector_of
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import EMBEDDING
from fastvlm.model.attention import ChannelLayerNorm
from fastvlm.model.projector import as_feature_tokens

LARGEST_HALF = 65504.0  # of float16


class VisionGraph(nn.Module):
    """Pixels (I, 3, H, W) float32 -> visual tokens (I, N, D) float32: fused encoder and projector, in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.encoder = encoder_of(checkpoint).float().deploy()
        self.projector = projector_of(checkpoint).float()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        return self.projector(self.encoded(pixel_values)).float()  # type: ignore[no-any-return]

    def encoded(self, pixel_values: Tensor) -> Tensor:
        """What comes before the projector: (I, N, C) of pixels (I, 3, H, W)."""
        pixels = pixel_values.to(self.projector.linear_1.weight.dtype)
        return as_feature_tokens(self.encoder(pixels))


class EmbeddingGraph(nn.Module):
    """Token ids (B, T) int64 -> embeddings (B, T, D) float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.weight = nn.Parameter(checkpoint.tensors[EMBEDDING].float(), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        return F.embedding(input_ids, self.weight).float()


class _Float32Norm(nn.Module):
    """A norm that computes in float32, because squares of the encoder's activations overflow float16."""

    def __init__(self, norm: ChannelLayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)  # type: ignore[no-any-return]


class _BoundedGelu(nn.Module):
    """GELU without numbers beyond its input's: exporters write x * (1 + erf) / 2, which can double them first."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (0.5 + 0.5 * torch.erf(x * 0.5**0.5))


def halved(graph: nn.Module) -> nn.Module:
    """`graph` itself with weights in float16; inputs and outputs stay float32, and so does what its norms compute."""
    for parameter in graph.parameters():  # not buffers: rotary frequencies stay float32
        parameter.data = parameter.data.half()
    children = [(parent, name, child) for parent in graph.modules() for name, child in parent.named_children()]
    for parent, name, child in children:
        if isinstance(child, ChannelLayerNorm):
            setattr(parent, name, _Float32Norm(child))
        elif isinstance(child, nn.GELU):
            setattr(parent, name, _BoundedGelu())
    return graph


@torch.inference_mode()
def largest_activation(graph: VisionGraph, pixel_values: Tensor) -> float:
    """Largest magnitude of what any part of the encoder or the projector gives for images (I, 3, H, W)."""
    largest = 0.0

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, float(output.abs().max()))

    handles = [module.register_forward_hook(note) for module in graph.modules()]
    try:
        graph(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return largest


@torch.no_grad()
def traced(graph: nn.Module, *example: Tensor) -> Any:
    """`graph` traced by torch for `example`, for converters that do not take a torch.export program."""
    trace: Any = torch.jit.trace
    with quiet_export():
        return trace(graph.eval(), example, check_trace=False)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide warnings, and log lines below errors, of exporters and quantizers: they concern their authors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
