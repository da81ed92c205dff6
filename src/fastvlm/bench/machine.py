"""Environment of a result: hardware, versions, commit, load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastvlm
from fastvlm.backends.native.openmp import num_cores

# Of those that matter to the kernels, what Linux calls them.
INSTRUCTION_SETS = (
    "avx2",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
_CPUINFO = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pillow")


def environment_card() -> dict[str, Any]:
    """Current machine, versions, commit and load, as JSON values."""
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in _cpu_flags()],
        "memory_bytes": _memory_bytes(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "fastvlm": fastvlm.__version__,
        "commit": source_commit(),
        **{name: _version(name) for name in _PACKAGES},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The CPU's model name."""
    return _cpu_field("model name") or platform.processor() or platform.machine() or "unknown"


def hardware_slug(name: str, cores: int) -> str:
    """A CPU's name as a part of a file name: ``xeon-platinum-8481c-2c``."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|@.*|\d+-core|processor|intel|amd", " ", name.lower())
    return "-".join([*re.findall(r"[a-z0-9]+", words), f"{cores}c"])


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" if changed; None outside one."""
    root = Path(fastvlm.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_field(name: str) -> str:
    if not _CPUINFO.is_file():
        return ""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def _cpu_flags() -> set[str]:
    return set((_cpu_field("flags") or _cpu_field("Features")).split())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
