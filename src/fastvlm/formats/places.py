"""Resolves the names of checkpoint and adapter folders, before any heavy library is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fastvlm
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.source import local_folder

SHIPPED = "mini"
EXPORT_FILE = "fastvlm_export.json"  # of folders that fastvlm export wrote
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them


def checkpoint_path(name_or_folder: str | os.PathLike[str], **hub: Any) -> Path:
    """The local folder of a name as :func:`load` takes it; `hub` as for huggingface_hub.

    Raises:
        CheckpointError: there is no such folder or repository, or the shipped checkpoint is not installed.
    """
    if str(name_or_folder) != SHIPPED or Path(SHIPPED).is_dir():
        return local_folder(name_or_folder, **hub)
    shipped = Path(fastvlm.__file__).parent / "weights" / SHIPPED
    if not (shipped / "config.json").is_file():
        raise CheckpointError(
            f"The shipped checkpoint 'mini' is not in this installation (no {shipped}). Install fastvlm from its "
            "wheel or a full clone, or name another checkpoint."
        )
    return shipped


def new_folder(target: str | os.PathLike[str]) -> Path:
    """The absolute path of `target`, which must not exist while its parent must; else UsageError."""
    path = Path(target).expanduser().absolute()
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already, and nothing is overwritten. Name another folder, or move it away.")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}, where {path.name!r} should go, is not a folder. Create it first.")
    return path


def adapter_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a LoRA adapter with its files; else CheckpointError."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"There is no folder {path}; expected a LoRA adapter as peft writes it.")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} has no {name}; expected a LoRA adapter as peft writes it.")
    return path
