"""The encoder of a checkpoint as an OpenVINO model, in float32 or quantized to 8 bits by nncf."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastvlm
from fastvlm.bench.encoder_peers import traced_encoder
from fastvlm.bench.measuring import pixels
from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.export.openvino_graphs import save
from fastvlm.opening import open_checkpoint
from fastvlm.processing.image_processor import image_size_px
from fastvlm.storage.whole_files import write_file

_NUM_CALIBRATION, _NUM_CHECKED = 8, 2  # shipped images: for nncf's ranges, and others for the error


def convert(folder: str, file: Path, side_px: int, bits: int = 32) -> None:
    """Write the encoder with its projector for one square image to `file` (.xml, with a .bin beside it).

    Args:
        folder: the checkpoint.
        file: its name; with 8 bits a .json of that name gets the error of the features.
        side_px: of the image.
        bits: 32, or 8 for weights and activations, with nncf's ranges from shipped images.
    """
    add_runtimes_folder()
    ov: Any = importlib.import_module("openvino")
    plain = file if bits == 32 else file.with_name(file.name.replace("-int8", ""))
    if bits == 32 or not plain.exists():
        image = pixels(side_px)
        traced = traced_encoder(folder, image)
        save(ov, ov.convert_model(traced, example_input=image, input=list(image.shape)), plain, is_half=False)
    if bits == 8:
        images = _shipped_images(folder, side_px)
        model = ov.Core().read_model(plain)
        quantized = _quantized(model, images[:_NUM_CALIBRATION])
        error = _error(ov, quantized, ov.Core().read_model(plain), images[_NUM_CALIBRATION:])
        write_file(file.with_suffix(".json"), json.dumps({"feature_error": round(error, 5)}))
        save(ov, quantized, file, is_half=False)


def _shipped_images(folder: str, side_px: int) -> list[NDArray[np.float32]]:
    """Images of the package's small evaluation, as the encoder's input (1, 3, side, side)."""
    processor = open_checkpoint(folder).processor.image_processor
    processor.image_size = image_size_px(side_px, processor.patch_size)
    files = sorted((Path(fastvlm.__file__).parent / "evaluation" / "mini_eval").glob("*.png"))
    return [processor(str(file))["pixel_values"].numpy() for file in files[: _NUM_CALIBRATION + _NUM_CHECKED]]


def _quantized(graph: Any, images: list[NDArray[np.float32]]) -> Any:
    nncf: Any = importlib.import_module("nncf")
    # nncf's default preset; with the other one (MIXED) the error on the mini is half as large again.
    return nncf.quantize(graph, nncf.Dataset(images), subset_size=len(images))


def _error(ov: Any, quantized: Any, plain: Any, images: list[NDArray[np.float32]]) -> float:
    """Norm of the features' difference over the norm of the features, over all `images`."""
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    runs = [ov.Core().compile_model(model, "CPU", precise) for model in (quantized, plain)]
    results = [np.concatenate([run([image])[0] for image in images]) for run in runs]
    return float(np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[1]))
