"""Memory that is free on this machine, for work that can be left out."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def free_bytes() -> int | None:
    """Bytes that programs can still take without swapping, as Linux estimates them; None on other systems."""
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def too_large(num_bytes: int) -> str:
    """Why work that takes `num_bytes` of memory cannot be done now; empty if it can, or if nobody knows."""
    free = free_bytes()
    if free is None or num_bytes <= free:
        return ""
    return f"takes about {num_bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
