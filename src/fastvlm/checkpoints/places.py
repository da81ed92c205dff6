"""Where a checkpoint is: its folder, by the name that was typed. No library is imported before the Hub is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fastvlm
from fastvlm.dialects.source import local_folder
from fastvlm.errors import CheckpointError

__all__ = ["SHIPPED", "checkpoint_path"]

SHIPPED = "mini"


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
