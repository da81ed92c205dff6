"""The user's folder of models: each subfolder that holds a checkpoint is a model by its name.

``$FASTVLM_HOME/models``; without the variable, ``fastvlm/models`` in the user's data folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # NAME or OWNER/NAME, never a path that leaves the folder
_CONFIG = "config.json"


def models_folder() -> Path:
    """The folder of models, which may not exist."""
    home = os.environ.get("FASTVLM_HOME")
    if home:
        return Path(home).expanduser().absolute() / "models"
    base = os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA") or Path("~/.local/share").expanduser()
    return Path(base) / "fastvlm" / "models"


def model_of_folder(name: str) -> Path | None:
    """The folder of the model `name` in the models folder; None if there is none."""
    if not _NAME.fullmatch(name):
        return None
    folder = models_folder() / name
    return folder if (folder / _CONFIG).is_file() else None


def models_of_folder() -> Iterator[tuple[str, Path]]:
    """Name and path of each model in the models folder, sorted."""
    root = models_folder()
    for folder in _folders(root):
        if (folder / _CONFIG).is_file():
            yield folder.name, folder
            continue
        for inner in _folders(folder):
            if (inner / _CONFIG).is_file():
                yield f"{folder.name}/{inner.name}", inner


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
