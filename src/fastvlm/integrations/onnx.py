"""Exported ONNX folders, asked through onnxruntime.

with OnnxFastVLM("fastvlm-onnx", dtype="q8") as model:
    print(model.ask("photo.jpg", "What is this?"))
"""

from __future__ import annotations

import os
from typing import Any

from fastvlm.api import FastVLM

__all__ = ["OnnxFastVLM"]


class OnnxFastVLM(FastVLM):
    """A folder of ``fastvlm export --to onnx``, with the methods of :class:`fastvlm.FastVLM`.

    Images are padded and tokens are made by this package; the three files compute the rest on the CPU.

    Args:
        folder: the exported folder.
        dtype: a variant that the folder has ("fp32", "fp16", "q8", "q4", "q4f16"); "auto" for the folder's default.
        threads: of onnxruntime; 0 for its default.
        num_slots: requests that are answered at the same time; their tokens are computed one after the other.
        settings: further ones of :class:`fastvlm.Engine`.

    Raises:
        CheckpointError: not such a folder.
        MissingExtraError: onnxruntime is not installed.
        UsageError: a variant that the folder does not have.
    """

    def __init__(
        self, folder: str | os.PathLike[str], dtype: str = "auto", threads: int = 0, num_slots: int = 4, **settings: Any
    ) -> None:
        super().__init__(str(folder), dtype=dtype, runtime="onnx", threads=threads, num_slots=num_slots, **settings)
