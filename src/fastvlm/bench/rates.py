"""Rate of several replies that are decoded together."""

from __future__ import annotations

from fastvlm.errors import UsageError


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
