"""How long OpenMP's threads spin before they sleep. Does not import torch."""

from __future__ import annotations

import os

_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_NUM_SPINS = "1000"  # some 20 microseconds


def limit_spinning() -> None:
    """Let the threads of GNU's OpenMP library, which torch brings on Linux, sleep soon when they wait.

    By default each wait spins for milliseconds. On cores that other processes use too, the awaited thread often has no
    core in the meantime, and a token takes 10 to 40 times as long. What the environment says is kept. It has an effect
    only before torch is imported.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, _NUM_SPINS)
