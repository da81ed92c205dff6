"""Settings of OpenMP's threads, which torch's layers and the compiled kernels use. Does not import torch."""

from __future__ import annotations

import os

from fastvlm.backends.native.cpu_quota import cpu_quota

SHORT_SPINS = ("GOMP_SPINCOUNT", "1000")  # variable and value: some 20 microseconds
_POLICY = "OMP_WAIT_POLICY"
_THREADS = "OMP_NUM_THREADS"


def configure_openmp() -> None:
    """Set the number of threads and their waiting in the environment; what it already says is kept.

    It has an effect only before torch is imported.

    - Threads of GNU's OpenMP library, which torch brings on Linux, sleep soon when they wait. By default each wait
      spins for milliseconds. On cores that other processes use too, the awaited thread often has no core in the
      meantime, and a token takes 10 to 40 times as long.
    - A container with a limit of CPU time below its number of cores gets as many threads as the limit has whole cores.
      torch counts cores alone; with a thread for each of them the limit is used up early in each period of 0.1 s, and
      all threads stand still for the rest of it.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(*SHORT_SPINS)
    cores = usable_cores()
    if cores < num_cores():
        os.environ.setdefault(_THREADS, str(cores))


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Whole cores that this process may use, by its affinity and by its container's limit of CPU time; at least 1."""
    quota = cpu_quota()
    return num_cores() if quota is None else max(1, min(num_cores(), int(quota)))
