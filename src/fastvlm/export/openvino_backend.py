"""Runs the OpenVINO models of an export on the CPU: for the comparison with their source, and for benchmarks.

I images, N visual tokens an image, B sequences of equal length, T tokens, D decoder width, V tokens of the vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm.export.openvino_models import model_file

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoFiles:
    """The models of a folder. Each is compiled when it is first used.

    Args:
        folder: of ``fastvlm export --to openvino``.
        settings: of OpenVINO's CPU plugin.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = FLOAT32) -> None:
        self._ov: Any = importlib.import_module("openvino")
        self._folder, self._settings = folder, dict(settings)

    @cached_property
    def _vision(self) -> Any:
        return self._compiled(self._read("vision_embeddings"))

    @cached_property
    def _text(self) -> Any:
        return self._compiled(self._read("text_embeddings")).create_infer_request()

    @cached_property
    def _language(self) -> Any:
        graph = self._read("language")
        _keep_last_position(graph)
        return self._compiled(graph).create_infer_request()

    def open_decoder(self) -> None:
        """Compile the embedding and the decoder."""
        _ = self._text, self._language

    def _read(self, name: str) -> Any:
        return self._ov.Core().read_model(model_file(self._folder, name))

    def _compiled(self, graph: Any) -> Any:
        return self._ov.Core().compile_model(graph, "CPU", self._settings)

    def start(self) -> None:
        """Empty the cache."""
        self._language.reset_state()

    def embeddings(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings (B, T, D) of token ids (B, T). The array is overwritten by the next call."""
        self._text.infer([token_ids], share_inputs=True)
        found: NDArray[np.float32] = self._text.get_output_tensor(0).data
        return found

    def step(self, embeds: NDArray[np.float32], start: int, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits (B, V) behind `embeds`. The array is overwritten by the next call.

        Args:
            embeds: (B, T, D), which follow `start` tokens.
            start: tokens in the cache.
            rows: (B,), the row of the cache that each sequence goes on from.
        """
        batch, length, _ = embeds.shape
        positions = np.arange(start, start + length, dtype=np.int64)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((batch, start + length), dtype=np.int64),
            "position_ids": np.ascontiguousarray(np.broadcast_to(positions, (batch, length))),
            "beam_idx": rows,
        }
        self._language.infer(inputs, share_inputs=True)
        logits: NDArray[np.float32] = self._language.get_tensor("logits").data[:, -1]
        return logits

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W), the return value."""
        yield from ()
        return torch.from_numpy(self._vision([pixel_values.numpy()])[0])

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return torch.from_numpy(self.embeddings(np.array([token_ids], dtype=np.int64))[0].copy())

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Logits (1, V) behind `embeds` (T, D), which follow `start` tokens; `slot` is 0."""
        del slot
        if not start:
            self.start()
        return torch.from_numpy(self.step(embeds[None].numpy(), start, np.zeros(1, dtype=np.int32)).copy())

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (1, V) after one more token."""
        return self.prefill_chunk(self.embed(token_ids), slots[0], positions[0])


def _keep_last_position(graph: Any) -> None:
    """Compute logits of the last position alone, as openvino-genai does when it loads a decoder."""
    ops: Any = importlib.import_module("openvino.opset13")
    product = graph.output("logits").get_node().input_value(0).get_node()
    if product.get_type_name() != "MatMul":
        return  # the head has another form: all positions are computed, which is slower and as right
    bounds = (ops.constant(np.array([number], dtype=np.int64)) for number in (-1, np.iinfo(np.int64).max, 1, 1))
    last = ops.slice(product.input_value(0), *bounds)
    product.input(0).replace_source_output(last.output(0))
    graph.validate_nodes_and_infer_types()
