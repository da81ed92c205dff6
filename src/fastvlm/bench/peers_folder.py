"""Import paths of the peers' packages, in the processes that measure them.

timm and torchvision, which transformers' FastVLM needs, may lie in a folder that the environment variable
``FASTVLM_PEERS`` names, or in ``.venv-peers``, where ``make peers`` puts them, in the current directory or at the root
of the tree that fastvlm is imported from. The runtimes (OpenVINO, ONNX Runtime, llama.cpp) may lie in its subfolder
``runtimes``, apart, because transformers imports what they bring. Only those processes look there. Where torchvision
lacks its compiled half, its registrations of compiled operators fail; nothing here needs those operators, and an empty
module takes their place.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import fastvlm
from fastvlm.errors import FastVlmError, MissingExtraError

MADE_FOLDER = ".venv-peers"  # by `make peers`
RUNTIMES = "runtimes"  # its subfolder
INSTALL_LINE = "pip install --no-deps timm torchvision"


def peers_folder() -> str | None:
    """The folder of timm and torchvision, if there is one."""
    roots = (Path.cwd(), Path(fastvlm.__file__).resolve().parents[2])
    found = next((str(root / MADE_FOLDER) for root in roots if (root / MADE_FOLDER).is_dir()), None)
    return os.environ.get("FASTVLM_PEERS", found)


def add_peers_folder() -> None:
    """Add the folder of timm and torchvision to this process's import path, if it exists."""
    _add(peers_folder())


def add_runtimes_folder() -> None:
    """Add the folder of the runtimes to this process's import path, if it exists."""
    folder = peers_folder()
    if folder and (Path(folder) / RUNTIMES).is_dir():
        _add(str(Path(folder).absolute() / RUNTIMES))


def check_installed(packages: Sequence[str], use: str) -> dict[str, str]:
    """Versions of packages of the runtimes, which are added to the import path and not imported.

    Raises:
        MissingExtraError: one is not installed.
    """
    add_runtimes_folder()
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "peers", use)
    return {package: importlib.metadata.version(package) for package in packages}


def _add(folder: str | None) -> None:
    if folder and folder not in sys.path:
        sys.path.append(folder)


def prepare_torchvision() -> None:
    """Import torchvision, if need be without the registrations of its compiled operators.

    Raises:
        FastVlmError: timm or torchvision is not installed; it says how to get them.
    """
    for package in ("timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise FastVlmError(f"{package} is not installed, which transformers' FastVLM needs. Run: {INSTALL_LINE}")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        name = "torchvision._meta_registrations"
        sys.modules[name] = types.ModuleType(name)
