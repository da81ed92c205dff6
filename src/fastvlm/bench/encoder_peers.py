"""Peers of the encoder: our FastViTHD and projector in OpenVINO and in ONNX Runtime.

Both get the fused copy (``FastViTHD.deploy()``) in float32, converted in memory for one image size.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.bench.measuring import Runtime
from fastvlm.bench.peers_folder import add_peers_folder
from fastvlm.bench.worker import Measured
from fastvlm.errors import MissingExtraError
from fastvlm.hf.loading import load
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.model.projector import as_feature_tokens

Run = Callable[[Any], Tensor]


class DeployedEncoder(nn.Module):
    """Pixels (1, 3, H, W) float32 -> visual tokens (1, N, D) float32: fused encoder and projector of a model."""

    def __init__(self, model: FastVlmForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.model.vision_tower.timm_model.deploy()
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        return self.projector(as_feature_tokens(self.encoder(pixel_values)))  # type: ignore[no-any-return]


class EncoderRuntime(Runtime):
    """A runtime of the encoder alone. Arguments: see :class:`Runtime`; `threads` are also those of the runtime."""

    packages: tuple[str, ...]

    def __init__(self, folder: str, dtype: str = "float32", threads: int = 0) -> None:
        super().__init__(folder, dtype, threads)
        self._runs: dict[torch.Size, Run] = {}

    @abstractmethod
    def _compiled(self, traced: Any, image: Tensor) -> Run:
        """A function of the image's numpy array, from the traced network; `image` (1, 3, H, W) is an example."""

    def open(self) -> Measured:
        """Import the runtime."""
        add_peers_folder()
        start_s = time.perf_counter()
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "peers", f"Measuring {self.packages[0]}")
            importlib.import_module(package)
        facts = {package: importlib.metadata.version(package) for package in self.packages}
        return Measured(time.perf_counter() - start_s, facts=facts)

    def _encoder_input(self, image: Tensor) -> tuple[Run, Any]:
        # The network is converted once for each image size.
        if image.shape not in self._runs:
            self._runs[image.shape] = self._converted(image)
        return self._runs[image.shape], image.numpy()

    def _features(self, inputs: tuple[Run, Any]) -> Tensor:
        run, array = inputs
        return run(array)

    @torch.no_grad()
    def _converted(self, image: Tensor) -> Run:
        model, _ = load(self.folder, device="cpu", dtype="float32")
        encoder = DeployedEncoder(model).eval().requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A function, not the module: tracing a module asks for each of its properties.
            trace: Any = torch.jit.trace
            traced = trace(lambda pixels: encoder(pixels), image, check_trace=False)  # noqa: PLW0108
            return self._compiled(traced, image)


class OpenVinoEncoder(EncoderRuntime):
    """OpenVINO on the CPU, with the precision that `dtype` names as its hint."""

    packages = ("openvino",)

    def _compiled(self, traced: Any, image: Tensor) -> Run:
        ov: Any = importlib.import_module("openvino")
        model = ov.convert_model(traced, example_input=image, input=list(image.shape))
        settings = {"INFERENCE_PRECISION_HINT": {"bfloat16": "bf16"}.get(self.dtype, "f32")}
        settings["PERFORMANCE_HINT"] = "LATENCY"
        if self.threads:
            settings["INFERENCE_NUM_THREADS"] = str(self.threads)
        compiled = ov.Core().compile_model(model, "CPU", settings)
        return lambda array: torch.from_numpy(compiled([array])[0])


class OnnxRuntimeEncoder(EncoderRuntime):
    """ONNX Runtime on the CPU, float32."""

    packages = ("onnxruntime", "onnx")

    def _compiled(self, traced: Any, image: Tensor) -> Run:
        ort: Any = importlib.import_module("onnxruntime")
        stream = io.BytesIO()
        # The exporter that needs no other package; the newer one needs onnxscript.
        export: Any = torch.onnx.export
        export(traced, (image,), stream, input_names=["pixel_values"], dynamo=False)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        session = ort.InferenceSession(stream.getvalue(), settings, providers=["CPUExecutionProvider"])
        return lambda array: torch.from_numpy(session.run(None, {"pixel_values": array})[0])
