"""Computes the packages of a Core ML export for one sequence, to compare them with their source."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastvlm.export.checks import Computes
from fastvlm.export.coreml_interpreter import CoreMlPackage
from fastvlm.export.graphs import VisionGraph

VISION, EMBEDDING, DECODER = "vision_encoder.mlpackage", "token_embedding.mlpackage", "decoder.mlpackage"
MASKED = -1e4  # added to the scores of tokens that are not attended to; fits into float16


class CoreMlFiles:
    """The three packages in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._vision, self._embedding, self._decoder = (
            CoreMlPackage(folder / name) for name in (VISION, EMBEDDING, DECODER)
        )

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (1, N, D) of pixel_values (1, 3, H, W), the return value."""
        yield from ()
        return self._vision(image=pixel_values * 255)["image_features"]

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return self._embedding(input_ids=torch.tensor([token_ids]))["inputs_embeds"][0]

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Logits (1, V) behind `embeds` (T, D), which follow `start` tokens; `slot` is 0."""
        del slot
        if not start:
            self._decoder.reset()
        mask = torch.full((len(embeds), start + len(embeds)), MASKED).triu(start + 1)
        return self._decoder(inputs_embeds=embeds[None], mask=mask[None, None])["logits"][0]

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (1, V) after one more token."""
        return self.prefill_chunk(self.embed(token_ids), slots[0], positions[0])


class AppFiles:
    """The encoder package of Apple's app, with projector and decoder of the checkpoint around it.

    Args:
        package: the encoder alone.
        vision: has the projector.
        rest: computes what MLX does in the app.
    """

    def __init__(self, package: Path, vision: VisionGraph, rest: Computes) -> None:
        self._encoder, self._projector = CoreMlPackage(package), vision.projector
        self.embed, self.prefill_chunk, self.logits, self.decode = (
            rest.embed,
            rest.prefill_chunk,
            rest.logits,
            rest.decode,
        )

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (1, N, D) of pixel_values (1, 3, H, W), the return value."""
        yield from ()
        return self._projector(self._encoder(images=pixel_values)["image_features"])  # type: ignore[no-any-return]
