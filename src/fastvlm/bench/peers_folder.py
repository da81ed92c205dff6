"""Import path of timm and torchvision, which transformers' FastVLM needs, in the processes that measure it.

They may lie in a folder that the environment variable ``FASTVLM_PEERS`` names, or in ``.venv-peers``, where
``make peers`` puts them, in the current directory or at the root of the tree that fastvlm is imported from; those
processes alone look there. Where torchvision lacks its compiled half, its registrations of compiled operators fail;
nothing here needs those operators, and an empty module takes their place.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import fastvlm
from fastvlm.errors import FastVlmError

MADE_FOLDER = ".venv-peers"  # by `make peers`
INSTALL_LINE = "pip install --no-deps timm torchvision"


def add_peers_folder() -> None:
    """Add the peers' folder to this process's import path, if it exists."""
    roots = (Path.cwd(), Path(fastvlm.__file__).resolve().parents[2])
    found = next((str(root / MADE_FOLDER) for root in roots if (root / MADE_FOLDER).is_dir()), None)
    folder = os.environ.get("FASTVLM_PEERS", found)
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
