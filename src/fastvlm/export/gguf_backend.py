"""Runs a GGUF decoder by llama.cpp with the checkpoint's own image encoder, to compare it with its source."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastvlm.export.graphs import EmbeddingGraph, VisionGraph
from fastvlm.export.libllama import PACKAGE, LibLlama
from fastvlm.export.source import ExportSource


def is_runtime_installed() -> bool:
    """True if a package with libllama is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


class GgufFiles:
    """A decoder in llama.cpp, for one sequence; visual tokens and embeddings are the checkpoint's in float32.

    Args:
        source: the checkpoint.
        file: its decoder.
    """

    def __init__(self, source: ExportSource, file: Path) -> None:
        self._vision, self._embedding = VisionGraph(source.checkpoint), EmbeddingGraph(source.checkpoint)
        self._llama = LibLlama(file)

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W), the return value."""
        yield from ()
        return self._vision(pixel_values)  # type: ignore[no-any-return]

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return self._embedding(torch.tensor(token_ids))  # type: ignore[no-any-return]

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Logits (1, V) behind `embeds` (T, D), which follow `start` tokens; `slot` is 0."""
        del slot
        return torch.from_numpy(self._llama.prefill(embeds.numpy(), start))[None]

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (1, V) after one more token."""
        del slots
        return torch.from_numpy(self._llama.decode(token_ids[0], positions[0]))[None]

    def close(self) -> None:
        """Release llama.cpp's memory."""
        self._llama.close()
