"""Runs the three OpenVINO models of an export on the CPU, to compare them with their source."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OpenVinoFiles:
    """The models of a folder, for one sequence, computed in float32.

    Args:
        folder: of ``fastvlm export --to openvino``.
    """

    def __init__(self, folder: Path) -> None:
        ov: Any = importlib.import_module("openvino")
        core, precise = ov.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
        self._vision, self._text, language = (
            core.compile_model(folder / f"openvino_{name}_model.xml", "CPU", precise)
            for name in ("vision_embeddings", "text_embeddings", "language")
        )
        self._request = language.create_infer_request()

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W), the return value."""
        yield from ()
        return torch.from_numpy(self._vision([pixel_values.numpy()])[0])

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return torch.from_numpy(self._text([np.array([token_ids], dtype=np.int64)])[0][0])

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Logits (1, V) behind `embeds` (T, D), which follow `start` tokens; `slot` is 0."""
        del slot
        if not start:
            self._request.reset_state()
        length = len(embeds)
        inputs = {
            "inputs_embeds": embeds[None].numpy(),
            "attention_mask": np.ones((1, start + length), dtype=np.int64),
            "position_ids": np.arange(start, start + length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.infer(inputs)
        return torch.from_numpy(self._request.get_tensor("logits").data[0, -1:].copy())

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (1, V) after one more token."""
        return self.prefill_chunk(self.embed(token_ids), slots[0], positions[0])
