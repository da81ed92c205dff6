"""The files of a repository that a checkpoint needs: configuration, tokenizer, license and weights, never Python.

Code in a repository is not run, and ``auto_map`` in a config is ignored, so code is not downloaded either.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

CHECKSUM_FILE = "SHA256SUMS"
CARD = "README.md"
TEXT_PATTERNS = ("*.json", "*.txt", "*.jinja", "LICENSE*", CHECKSUM_FILE)
# In order of preference: ``.bin`` files beside safetensors are copies.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def needed_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that opening its checkpoint needs, sorted; only files of its top folder."""
    at_top = sorted(name for name in names if "/" not in name)
    texts = [name for name in at_top if any(fnmatchcase(name, pattern) for pattern in TEXT_PATTERNS)]
    sets = ([name for name in at_top if fnmatchcase(name, pattern)] for pattern in WEIGHT_PATTERNS)
    return texts + next(filter(None, sets), [])
