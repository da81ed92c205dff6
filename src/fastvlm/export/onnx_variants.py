"""ONNX files in 8 and 4 bits, by ONNX Runtime's quantizers.

- ``q8``: weights of the decoder's products in 8 bits a channel, activations rounded while running; the embedding in 8
  bits; the encoder's convolutions and products in 8 bits without sign, which ONNX Runtime's convolutions need.
- ``q4``: products and embedding in 4 bits, symmetric, one scale for 32 inputs. Convolutions stay as they are, so an
  encoder gains little.
- ``q4f16``: the same, of the float16 graph.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvlm.backends.onnx import DECODER, EMBED

GROUP = 32  # inputs that share a scale in 4 bits


def rounded_to_8_bits(name: str, file: Path) -> Any:
    """The model in `file` of session `name` with 8-bit weights, as an onnx_ir model."""
    ort: Any = importlib.import_module("onnxruntime.quantization")
    ir: Any = importlib.import_module("onnx_ir")
    operators = {DECODER: ["MatMul"], EMBED: ["Gather"]}.get(name, ["Conv", "MatMul"])
    kind = ort.QuantType.QInt8 if name == DECODER else ort.QuantType.QUInt8
    with _scratch(file) as scratch, quiet_logs():
        ort.quantize_dynamic(
            file,
            scratch,
            op_types_to_quantize=operators,
            weight_type=kind,
            per_channel=name == DECODER,
            extra_options={"MatMulConstBOnly": True},
            use_external_data_format=_has_data(file),
        )
        model = ir.load(scratch)
        ir.external_data.load_to_model(model)
    return model


def rounded_to_4_bits(name: str, file: Path) -> Any:
    """The model in `file` of session `name` with 4-bit weights, as an onnx_ir model."""
    onnx: Any = importlib.import_module("onnx")
    ir: Any = importlib.import_module("onnx_ir")
    quantizers: Any = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    operators = ("Gather",) if name == EMBED else ("MatMul",)
    with quiet_logs():
        quantizer = quantizers.MatMulNBitsQuantizer(
            onnx.load(file),
            bits=4,
            block_size=GROUP,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=operators,
        )
        quantizer.process()
    return ir.from_proto(quantizer.model.model)


def _has_data(file: Path) -> bool:
    return file.with_name(f"{file.name}_data").exists()


@contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A file of the same name in a new folder beside `file`, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".quantized-", dir=file.parent))
    try:
        yield folder / file.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Hide what the quantizers log about each node."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
