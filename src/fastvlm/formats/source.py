"""Resolves a name to a local folder: an existing path, a model of the models folder, or a repository of the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError
from fastvlm.formats.models_folder import model_of_folder, models_folder
from fastvlm.hub.errors import clear_hub_errors
from fastvlm.hub.files import TEXT_PATTERNS, WEIGHT_PATTERNS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | os.PathLike[str], *, subfolder: str = "", **hub: Any) -> Path:
    """The folder that `name` stands for: an existing path, else a model of the models folder, else a Hub repository.

    Args:
        name: a folder, a name in the models folder, or ``owner/repository`` on the Hub.
        subfolder: folder inside it that holds the checkpoint.
        hub: `revision` (branch, tag or commit), `token`, `cache_dir`, `force_download`, `local_files_only`, for
            huggingface_hub; ``HF_HUB_OFFLINE=1`` is respected.

    Raises:
        CheckpointError: there is no such folder or repository, it is gated, or offline and not in the cache.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise CheckpointError(f"{path} is a file; expected the folder of a checkpoint, with config.json and weights.")
    if path.is_dir():
        return path / subfolder
    text = str(name)
    if isinstance(name, str) and hub.get("revision") is None and (found := model_of_folder(name)) is not None:
        return found / subfolder
    if isinstance(name, os.PathLike) or not REPOSITORY.fullmatch(text) or text.startswith("."):
        raise CheckpointError(
            f"There is no folder {text!r}, also not in {models_folder()}, and it is no Hub repository's name either "
            "('owner/name', as in 'apple/FastVLM-0.5B'). Check the path; `fastvlm ls` lists the models that are here."
        )
    return hub_folder(text, subfolder, **{key: value for key, value in hub.items() if value is not None})


def hub_folder(repository: str, subfolder: str = "", **hub: Any) -> Path:
    """The cached folder of a Hub repository, downloaded as far as it is missing; arguments as :func:`local_folder`."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # not for a folder that is here

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""

    def fetch(*patterns: str) -> Path:
        wanted = [prefix + pattern for pattern in patterns]
        # "*" also matches "/" in the Hub's patterns: without this, files of unrelated folders would come along.
        unwanted = [prefix + "*/*"]
        return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted, **hub)) / prefix

    with clear_hub_errors(repository, hub.get("revision")):
        for pattern in WEIGHT_PATTERNS:
            folder = fetch(*TEXT_PATTERNS, pattern)
            if list(folder.glob(pattern)):
                break
    return folder
