"""Keeps the parts of Apple's layout that ``fast_vlm`` cannot express, in a subfolder of the converted checkpoint.

``llava_qwen2/config.json`` is Apple's own file; ``llava_qwen2/extras.safetensors`` holds the CLIP head (`head.proj`,
which the VLM never uses), the number of vocabulary rows and whether a head was stored. Only :func:`fastvlm.convert`
reads it, to convert back; everything else ignores it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fastvlm.conversion.shards import PlannedTensor, write_safetensors
from fastvlm.formats.folder import CheckpointFolder
from fastvlm.formats.json_files import read_json
from fastvlm.formats.names import EMBEDDING
from fastvlm.formats.safetensors_header import read_header

_FOLDER = "llava_qwen2"


@dataclass(frozen=True)
class AppleExtras:
    """Kept for the way back.

    Args:
        config: Apple's config.json.
        tensors: those that the VLM does not use, under Apple's names.
        num_rows: rows of the vocabulary in Apple's file.
        has_head: True if Apple's file had a head as well as the embedding table.
    """

    config: dict[str, Any]
    tensors: tuple[PlannedTensor, ...]
    num_rows: int
    has_head: bool

    @classmethod
    def of(cls, folder: CheckpointFolder) -> AppleExtras | None:
        """From an Apple folder itself, or from what was kept in a converted one; None if there is nothing."""
        if folder.layout == "llava_qwen2":
            weights = folder.weights
            entries = ((key, weights.entries[key]) for key in folder.dropped)
            tensors = tuple(
                PlannedTensor(key, entry.shape, entry.dtype, partial(weights.tensor, key)) for key, entry in entries
            )
            rows = weights.entries[folder.keys[EMBEDDING]].shape[0]
            return cls(folder.raw_config, tensors, rows, folder.has_stored_head)
        file = folder.path / _FOLDER / "extras.safetensors"
        return cls._kept(file) if file.is_file() else None

    @classmethod
    def _kept(cls, file: Path) -> AppleExtras:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata()
            tensors = tuple(PlannedTensor.of(key, opened.get_tensor(key)) for key in read_header(file))
        return cls(read_json(file.parent / "config.json"), tensors, int(said["num_rows"]), said["has_head"] == "true")

    def write(self, target: Path) -> None:
        """Write the folder into `target`."""
        folder = target / _FOLDER
        folder.mkdir()
        text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        said = {"num_rows": str(self.num_rows), "has_head": str(self.has_head).lower()}
        write_safetensors(folder / "extras.safetensors", self.tensors, metadata=said)
