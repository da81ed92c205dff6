"""Runs an ExecuTorch program of an export by the package's Python runtime, to compare it with its source."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.export.graphs import quiet_export

METHODS = ("vision_encoder", "token_embedding", "text_decoder")  # as the multimodal runner calls them


class ExecuTorchFile:
    """One ``.pte`` file, for one sequence.

    Args:
        file: of ``fastvlm export --to executorch``.
    """

    def __init__(self, file: Path) -> None:
        with quiet_export():
            runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
            self._program = runtime.load_program(file)
            self._methods = {name: self._program.load_method(name) for name in METHODS}

    def constant(self, name: str) -> list[int]:
        """What a method without inputs returns."""
        return list(self._program.load_method(name).execute([]))

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (1, N, D) of pixel_values (1, 3, H, W), the return value."""
        yield from ()
        return self._call("vision_encoder", pixel_values)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return self._call("token_embedding", torch.tensor([list(token_ids)]))[0]

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Logits (1, V) behind `embeds` (T, D), which follow `start` tokens; `slot` is 0."""
        del slot
        return self._call("text_decoder", embeds[None], torch.arange(start, start + len(embeds)))

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (1, V) after one more token."""
        return self.prefill_chunk(self.embed(token_ids), slots[0], positions[0])

    def _call(self, name: str, *inputs: Tensor) -> Tensor:
        output: Tensor = self._methods[name].execute([tensor.contiguous() for tensor in inputs])[0]
        return output.clone()  # it lies in the method's memory, where the next call writes
