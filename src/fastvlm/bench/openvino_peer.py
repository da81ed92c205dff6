"""The contestant `openvino` of the decoder."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from fastvlm.bench.conversions import converted
from fastvlm.bench.decoder_peers import DecoderPeer, top_log_probs
from fastvlm.export.openvino_backend import OpenVinoFiles

PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}


def openvino_settings(dtype: str, threads: int) -> dict[str, str]:
    """Settings of a compiled model: latency, precision of the computation, threads (0 for the default)."""
    settings = {"INFERENCE_PRECISION_HINT": PRECISIONS.get(dtype, "f32"), "PERFORMANCE_HINT": "LATENCY"}
    return {**settings, **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})}


class OpenVinoDecoder(DecoderPeer):
    """OpenVINO on the CPU, weights in float16, 8 or 4 bits (nncf). Arguments: see :class:`DecoderPeer`."""

    packages = ("openvino", "nncf")

    def _open(self) -> None:
        name = f"openvino-decoder-{self.bits}"
        folder = converted("openvino-decoder", self.folder, self.work, name, bits=self.bits)
        self._files = OpenVinoFiles(folder, openvino_settings(self.dtype, self.threads))
        self._files.open_decoder()

    def _step(self, ids: NDArray[np.int64], position: int, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits (B, V) behind `ids` (B, T), the first of which is at `position`; `rows` (B,): cache rows to go on."""
        return self._files.step(self._files.embeddings(ids), position, rows)

    def _start(self, prompt: list[int]) -> NDArray[np.float32]:
        self._files.start()
        return self._step(np.array([prompt]), 0, np.zeros(1, dtype=np.int32))

    def _log_probs(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        return top_log_probs(self._start(prompt)[0])

    def _replies(self, prompt: list[int], num_tokens: int, num_streams: int) -> tuple[list[list[float]], list[int]]:
        ids = np.repeat(self._start(prompt).argmax(-1)[:, None], num_streams, axis=0)
        moments, tokens = [time.perf_counter()], [int(ids[-1, 0])]
        rows = np.zeros(num_streams, dtype=np.int32)  # all go on from the one prompt
        for position in range(len(prompt), len(prompt) + num_tokens - 1):
            ids = self._step(ids, position, rows).argmax(-1)[:, None]
            rows = np.arange(num_streams, dtype=np.int32)
            moments.append(time.perf_counter())
            tokens.append(int(ids[-1, 0]))
        return [moments] * num_streams, tokens
