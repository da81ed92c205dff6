"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastvlm.errors import TrainingError

FILE = "ema.safetensors"


class WeightAverage:
    """``average = d * average + (1 - d) * weights`` after each step.

    Args:
        model: its trainable parameters are averaged, beginning with their present values.
        decay: d in (0, 1). Early steps use ``(1 + step) / (10 + step)`` if it is lower, so that the first values soon
            lose their weight (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self.weights.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.weights.items():
            parameter.copy_(values[name])

    def save(self, folder: Path) -> None:
        """Write the averages into a checkpoint."""
        save_file({name: average.contiguous() for name, average in self.averages.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Load the averages. Raises TrainingError if the checkpoint has none, or those of other weights."""
        file = folder / FILE
        found = load_file(file) if file.is_file() else {}
        if found.keys() != self.averages.keys():
            raise TrainingError(f"{folder} has no average of these weights ({FILE}). Did the run begin without ema?")
        for name, average in self.averages.items():
            average.copy_(found[name])
