"""Digest of a checkpoint folder, to tell whether two runs had the same one."""

from __future__ import annotations

import hashlib
from pathlib import Path

_DECIDING = (".safetensors", ".bin", ".json", ".jinja")  # files of a checkpoint that change replies
_NUM_SAMPLES, _SAMPLE_BYTES = 32, 2**16


def checkpoint_digest(folder: Path) -> str:
    """Digest of a checkpoint: file names, sizes, and samples of each file (at most 2 MB).

    Training changes a file everywhere, so samples are enough; reading 15 GB would take longer than many runs.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _DECIDING and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                for number in range(_NUM_SAMPLES):
                    stream.seek(size * number // _NUM_SAMPLES)
                    digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
