"""The decoder of a checkpoint as a GGUF file, whose tokens have made-up names: only token ids go in and come out."""

from __future__ import annotations

from pathlib import Path

from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.config import Bits
from fastvlm.export.gguf import write_gguf
from fastvlm.opening import open_checkpoint


def convert(folder: str, file: Path, bits: Bits) -> None:
    """Write the decoder of the checkpoint in `folder` to `file`, which appears when it is whole."""
    add_runtimes_folder()
    part = file.with_name(f".{file.name}.part")
    write_gguf(open_checkpoint(folder), bits, part)
    part.replace(file)
