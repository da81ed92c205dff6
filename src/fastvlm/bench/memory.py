"""How much memory this process has taken at most."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_bytes"]

_STATUS = Path("/proc/self/status")


def peak_bytes(device: str = "cpu") -> int:
    """Largest resident set of this process so far, in bytes; with a CUDA device what was taken there at most.

    Linux tells it for the program that runs (VmHWM). ``ru_maxrss``, which is all that other systems have, also counts
    what the parent held when it started us.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
