"""Base class of the measured runtimes, the encoder's input and comparison of results."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastvlm.bench.memory import peak_bytes
from fastvlm.bench.worker import Measured

_SKETCH_NUMBERS = 256


class Runtime(ABC):
    """A program that computes with a checkpoint; its public methods are commands of a worker.

    Args:
        folder: the checkpoint.
        dtype: of the computation: "bfloat16", "float32", ...
        threads: of torch; 0 for the default.
        device: "cpu", "cuda".
    """

    def __init__(self, folder: str, dtype: str, threads: int = 0, device: str = "cpu") -> None:
        self.folder, self.dtype, self.threads, self.device = folder, dtype, threads, device
        if threads:
            torch.set_num_threads(threads)

    @abstractmethod
    def open(self) -> Measured:
        """Seconds to load the model or to import the runtime; `facts` are the packages' versions."""

    @abstractmethod
    def _encoder_input(self, image: Tensor) -> Any:
        """The argument of `_features` for pixels (1, 3, H, W) float32; not timed."""

    @abstractmethod
    def _features(self, inputs: Any) -> Tensor:
        """Projected visual tokens."""

    def encode(self, side_px: int) -> Measured:
        """Seconds from pixels to projected visual tokens."""
        inputs = self._encoder_input(pixels(side_px))
        wait_for(self.device)
        with torch.inference_mode():
            start_s = time.perf_counter()
            features = self._features(inputs)
            wait_for(self.device)
            seconds = time.perf_counter() - start_s
        return Measured(seconds, check=sketch(features.float()))

    def memory(self) -> Measured:
        """Largest resident set of this process so far."""
        return Measured(peak_bytes(self.device))


class GeneratingRuntime(Runtime):
    """A runtime that also generates replies."""

    @abstractmethod
    def throughput(self, num_streams: int, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of several replies together, while all are being decoded."""

    def decode(self, num_tokens: int, prompt_tokens: int, seed: int = 0) -> Measured:
        """Tokens a second of one reply, after its first token."""
        return self.throughput(1, num_tokens, prompt_tokens, seed)


def pixels(side_px: int) -> Tensor:
    """An image (1, 3, side, side) float32 in [0, 1], the same in every process: patches of color under noise."""
    generator = torch.Generator().manual_seed(side_px)
    patches = torch.rand(1, 3, 8, 8, generator=generator)
    noise = torch.rand(1, 3, side_px, side_px, generator=generator)
    return 0.8 * torch.nn.functional.interpolate(patches, (side_px, side_px), mode="bilinear") + 0.2 * noise


def sketch(features: Tensor) -> list[float]:
    """Evenly spaced numbers of a tensor, by which two results are compared."""
    flat = features.detach().flatten()
    return [float(x) for x in flat[:: max(1, len(flat) // _SKETCH_NUMBERS)][:_SKETCH_NUMBERS]]


def wait_for(device: str) -> None:
    """Wait until queued work is done (on a GPU), before the time is read."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
