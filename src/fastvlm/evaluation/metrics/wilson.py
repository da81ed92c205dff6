"""Confidence interval of a score."""

from __future__ import annotations

import math

Z_95 = 1.96  # two-sided 95 % of the normal distribution


def wilson_interval(share: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share of `n` questions, 0 to 1.

    For scores between 0 and 1 that are not only right or wrong (VQA accuracy, ANLS) it is on the wide side: such a
    score with the mean p varies by at most p (1 - p).

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(max(0.0, share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, center - half), min(1.0, center + half)
