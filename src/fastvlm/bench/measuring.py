"""What all measurements share: the encoder's input, comparison of results, rates, and waiting for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.errors import UsageError

_SKETCH_NUMBERS = 256


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


def steady_rate(times_s: list[list[float]]) -> float:
    """Tokens a second of several replies together, while all of them are being decoded.

    Args:
        times_s: for each reply, the times of its tokens.

    Raises:
        UsageError: some reply ended before another began.
    """
    start_s, end_s = max(times[0] for times in times_s), min(times[-1] for times in times_s)
    count = sum(start_s < moment <= end_s for times in times_s for moment in times)
    if count == 0:
        raise UsageError("The replies were too short to measure decoding. Take a random checkpoint: --preset 0.5b.")
    return count / (end_s - start_s)


def wait_for(device: str) -> None:
    """Wait until queued work is done (on a GPU), before the time is read."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
