"""The three OpenVINO models of an export: encoder with projector, embedding, and a decoder with its cache inside."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastvlm.export.decoder import EmbeddingsDecoder, expanded_attention
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, quiet_export
from fastvlm.export.openvino_graphs import EXAMPLE, compressed, save, stateful_decoder
from fastvlm.export.source import ExportSource

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}  # of the weights, by dtype of the export


def write_model(source: ExportSource, folder: Path, name: str, dtype: str) -> None:
    """Write a model of `source` to its file in `folder` (see :func:`model_file`).

    Args:
        source: the checkpoint, with the size of its images.
        folder: exists.
        name: a key of MODELS.
        dtype: a key of BITS. With "int4" only the decoder's layers have 4 bits; the rest has 8.
    """
    ov: Any = importlib.import_module("openvino")
    bits, model = BITS[dtype], MODELS[name](ov, source)
    if bits < 16:
        model = compressed(model, bits if name == "language" else 8)
    save(ov, model, model_file(folder, name), is_half=bits == 16)


def model_file(folder: Path, name: str) -> Path:
    """The .xml of a model in `folder`; its weights lie beside it in a .bin."""
    return folder / f"openvino_{name}_model.xml"


def _vision(ov: Any, source: ExportSource) -> Any:
    pixels = torch.zeros(2, 3, source.side_px, source.side_px)
    model = _converted(ov, VisionGraph(source.checkpoint), pixels, {0: torch.export.Dim("images")})
    return _named(model, "pixel_values", "last_hidden_state")


def _embeddings(ov: Any, source: ExportSource) -> Any:
    ids = torch.zeros(EXAMPLE[:2], dtype=torch.long)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    return _named(_converted(ov, EmbeddingGraph(source.checkpoint), ids, dims), "input", "inputs_embeds")


def _language(ov: Any, source: ExportSource) -> Any:
    batch, length, before = EXAMPLE
    inputs = {
        "inputs_embeds": torch.zeros(batch, length, source.width),
        "attention_mask": torch.ones(batch, before + length, dtype=torch.long),
        "position_ids": torch.arange(length)[None].expand(batch, -1) + before,
    }
    decoder = EmbeddingsDecoder(source.checkpoint, expanded_attention).eval()
    return stateful_decoder(ov, decoder, inputs, [[-1, -1, source.width], [-1, -1], [-1, -1]])


def _converted(ov: Any, graph: torch.nn.Module, example: torch.Tensor, dims: dict[int, Any]) -> Any:
    with quiet_export(), torch.no_grad():
        return ov.convert_model(torch.export.export(graph.eval(), (example,), dynamic_shapes=(dims,)))


def _named(graph: Any, inputs: str, outputs: str) -> Any:
    graph.inputs[0].get_tensor().set_names({inputs})
    graph.outputs[0].get_tensor().set_names({outputs})
    return graph


MODELS: dict[str, Callable[[Any, ExportSource], Any]] = {
    "vision_embeddings": _vision,
    "text_embeddings": _embeddings,
    "language": _language,
}
