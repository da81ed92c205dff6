"""Peers of the encoder: our FastViTHD and projector in OpenVINO and in ONNX Runtime.

Both get the fused copy (``FastViTHD.deploy()``) in float32, converted for one image size; OpenVINO also quantizes it.
"""

from __future__ import annotations

import importlib
import io
import json
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.bench.conversions import converted
from fastvlm.bench.measuring import Runtime
from fastvlm.bench.openvino_folders import NOTES, encoder_folder, read_encoder
from fastvlm.bench.openvino_peer import openvino_settings
from fastvlm.bench.peers_folder import check_installed
from fastvlm.bench.worker import Measured
from fastvlm.export.graphs import VisionGraph, quiet_export, traced
from fastvlm.opening import open_checkpoint

Run = Callable[[Any], Tensor]


def traced_encoder(folder: str, image: Tensor) -> Any:
    """The encoder of a checkpoint in float32, traced by torch for one image (1, 3, H, W)."""
    return traced(VisionGraph(open_checkpoint(folder)), image)


class EncoderRuntime(Runtime):
    """A runtime of the encoder alone. Arguments: see :class:`Runtime`; `threads` are also those of the runtime."""

    packages: tuple[str, ...]

    def __init__(self, folder: str, dtype: str = "float32", threads: int = 0) -> None:
        super().__init__(folder, dtype, threads)
        self._runs: dict[torch.Size, Run] = {}

    @abstractmethod
    def _compiled(self, image: Tensor) -> Run:
        """A function of an image's numpy array, from the checkpoint; `image` (1, 3, H, W) is an example."""

    def open(self) -> Measured:
        """Import the runtime."""
        facts = check_installed(self.packages, f"Measuring {self.packages[0]}")
        start_s = time.perf_counter()
        for package in self.packages:
            importlib.import_module(package)
        return Measured(time.perf_counter() - start_s, facts=facts)

    def _encoder_input(self, image: Tensor) -> tuple[Run, Any]:
        # The network is converted once for each image size.
        if image.shape not in self._runs:
            self._runs[image.shape] = self._compiled(image)
        return self._runs[image.shape], image.numpy()

    def _features(self, inputs: tuple[Run, Any]) -> Tensor:
        run, array = inputs
        return run(array)


class OpenVinoEncoder(EncoderRuntime):
    """OpenVINO on the CPU, with the precision that `dtype` names as its hint.

    Args:
        work: the folder of conversions.
        bits: 32, or 8 for the encoder that nncf has quantized.
    """

    packages: tuple[str, ...] = ("openvino",)

    def __init__(self, folder: str, work: str, dtype: str = "float32", threads: int = 0, bits: int = 32) -> None:
        super().__init__(folder, dtype, threads)
        self.work, self.bits = work, bits
        self.packages = ("openvino", "nncf")[: 1 if bits == 32 else 2]

    def open(self) -> Measured:
        """Import the runtime, without nncf, which only the conversion needs."""
        facts = check_installed(self.packages, "Measuring openvino")
        start_s = time.perf_counter()
        importlib.import_module("openvino")
        return Measured(time.perf_counter() - start_s, facts=facts)

    def encode(self, side_px: int) -> Measured:
        """As in :class:`Runtime`; with 8 bits `facts` has the error of the features on shipped images."""
        measured = super().encode(side_px)
        notes = self._converted(side_px) / NOTES
        return replace(measured, facts=json.loads(notes.read_text("utf-8"))) if self.bits == 8 else measured

    def _converted(self, side_px: int) -> Path:
        name, options = encoder_folder(side_px, self.bits), {"side_px": side_px, "bits": self.bits}
        return converted("openvino-encoder", self.folder, self.work, name, **options)

    def _compiled(self, image: Tensor) -> Run:
        ov: Any = importlib.import_module("openvino")
        graph = read_encoder(ov, self._converted(image.shape[-1]), image.shape[-1])
        compiled = ov.Core().compile_model(graph, "CPU", openvino_settings(self.dtype, self.threads))
        return lambda array: torch.from_numpy(compiled([array])[0])


class OnnxRuntimeEncoder(EncoderRuntime):
    """ONNX Runtime on the CPU, float32."""

    packages = ("onnxruntime", "onnx")

    def _compiled(self, image: Tensor) -> Run:
        ort: Any = importlib.import_module("onnxruntime")
        stream = io.BytesIO()
        export: Any = torch.onnx.export
        with quiet_export(), torch.no_grad():
            # The exporter that needs no other package; the newer one needs onnxscript.
            export(traced_encoder(self.folder, image), (image,), stream, input_names=["pixel_values"], dynamo=False)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        session = ort.InferenceSession(stream.getvalue(), settings, providers=["CPUExecutionProvider"])
        return lambda array: torch.from_numpy(session.run(None, {"pixel_values": array})[0])
