"""The user's cache and configuration folders."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """This user's cache folder for fastvlm, which may not exist yet. Raises RuntimeError if there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or str(Path.home() / ".cache")
    return Path(base) / "fastvlm"


def templates_folder() -> Path:
    """This user's folder of templates, which may not exist yet: in $FASTVLM_HOME, else among other configuration.

    Raises RuntimeError if there is no home.
    """
    home = os.environ.get("FASTVLM_HOME")
    if home:
        return Path(home).expanduser().absolute() / "templates"
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA") or str(Path.home() / ".config")
    return Path(base) / "fastvlm" / "templates"
