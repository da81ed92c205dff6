"""Folders of exported OpenVINO models that the contestants read: the export's own, and an encoder in 8 bits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastvlm
from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.config import Bits
from fastvlm.export.openvino_backend import FLOAT32
from fastvlm.export.openvino_graphs import quantized, save
from fastvlm.export.openvino_models import model_file, write_model
from fastvlm.export.source import open_source
from fastvlm.storage.whole_folders import whole_folder

NOTES = "notes.json"  # in the folder of an encoder of 8 bits: the error of its features
_DTYPES = {16: "fp16", 8: "int8", 4: "int4"}
_ENCODER = "vision_embeddings"
_NUM_CALIBRATION, _NUM_CHECKED = 8, 2  # shipped images: for nncf's ranges, and others for the error


def write_decoder(folder: str, target: Path, bits: Bits) -> None:
    """Write the embedding and the decoder of the checkpoint in `folder` to the new folder `target`."""
    add_runtimes_folder()
    source = open_source(Path(folder))
    with whole_folder(target) as work:
        for name in ("text_embeddings", "language"):
            write_model(source, work, name, _DTYPES[bits])


def write_encoder(folder: str, target: Path, side_px: int, bits: int = 32) -> None:
    """Write the encoder with its projector to the new folder `target`.

    Args:
        folder: the checkpoint.
        target: named as :func:`encoder_folder` names it.
        side_px: of the images.
        bits: 32, or 8 for weights and activations, with nncf's ranges from shipped images.
    """
    add_runtimes_folder()
    plain = target.with_name(encoder_folder(side_px, 32))
    if not plain.exists():
        source = open_source(Path(folder), side_px)
        with whole_folder(plain) as work:
            write_model(source, work, _ENCODER, "fp32")
    if bits == 8:
        with whole_folder(target) as work:
            _write_quantized(folder, plain, work, side_px)


def encoder_folder(side_px: int, bits: int) -> str:
    """Name of the encoder's folder among the conversions."""
    return f"openvino-encoder-{side_px}{'-int8' if bits == 8 else ''}"


def read_encoder(ov: Any, folder: Path, side_px: int) -> Any:
    """The encoder in `folder`, for one image at a time, which compiles to the fastest code."""
    graph = ov.Core().read_model(model_file(folder, _ENCODER))
    graph.reshape([1, 3, side_px, side_px])
    return graph


def _write_quantized(folder: str, plain: Path, work: Path, side_px: int) -> None:
    ov: Any = importlib.import_module("openvino")
    images = _shipped_images(folder, side_px)
    graph = quantized(read_encoder(ov, plain, side_px), images[:_NUM_CALIBRATION])
    error = _error(ov, graph, read_encoder(ov, plain, side_px), images[_NUM_CALIBRATION:])
    (work / NOTES).write_text(json.dumps({"feature_error": round(error, 5)}), encoding="utf-8")
    save(ov, graph, model_file(work, _ENCODER), is_half=False)


def _shipped_images(folder: str, side_px: int) -> list[NDArray[np.float32]]:
    """Images of the package's small evaluation, as the encoder's input (1, 3, side, side)."""
    processor = open_source(Path(folder), side_px).checkpoint.processor.image_processor
    files = sorted((Path(fastvlm.__file__).parent / "evaluation" / "mini_eval").glob("*.png"))
    return [processor(str(file))["pixel_values"].numpy() for file in files[: _NUM_CALIBRATION + _NUM_CHECKED]]


def _error(ov: Any, found: Any, plain: Any, images: list[NDArray[np.float32]]) -> float:
    """Norm of the features' difference over the norm of the features, over all `images`."""
    runs = [ov.Core().compile_model(graph, "CPU", FLOAT32) for graph in (found, plain)]
    results = [np.concatenate([run([image])[0] for image in images]) for run in runs]
    return float(np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[1]))
