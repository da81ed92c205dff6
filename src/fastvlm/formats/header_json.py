"""The JSON of a safetensors file's header, read without torch.

Layout: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import FETCH_AGAIN

# safetensors itself takes 100 million bytes, which Python parses in seconds. A 7B has 100,000 bytes and 750 tensors.
_MAX_HEADER_BYTES = 8 << 20


def size_and_header(file: Path) -> tuple[int, bytes]:
    """The file's size in bytes, and the bytes of its header's JSON.

    Raises:
        CheckpointError: not a safetensors file, truncated in its header, or a header of more than 8 MiB.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                raise CheckpointError(
                    f"{file} is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository, or download "
                    "it."
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= size - 8:
                raise CheckpointError(
                    f"{file} is not a safetensors file, or only its beginning: it has {size} bytes, and its first "
                    f"eight announce a header of {length}. {FETCH_AGAIN}"
                )
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{file} has a header of {length} bytes; a FastVLM's has at most {_MAX_HEADER_BYTES}. This is no "
                    "file of a FastVLM checkpoint."
                )
            return size, stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}. {FETCH_AGAIN}") from error
