"""The JSON schema that `--schema` names."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastvlm.errors import MissingExtraError, UsageError

_MAX_BYTES = 2**20


def read_schema(path: str | None) -> dict[str, Any] | None:
    """The schema in the file at `path`; None for None.

    Raises:
        UsageError: a file that cannot be read, is over 1 MiB, or does not hold a JSON object.
        MissingExtraError: nothing is installed that enforces schemas.
    """
    if path is None:
        return None
    if find_spec("llguidance") is None:
        raise MissingExtraError("llguidance", "serve", "--schema")
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UsageError(f"--schema {path!r} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"--schema {path!r} is larger than {_MAX_BYTES} bytes. Pass a smaller schema.")
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--schema {path!r} is not JSON ({error}). Pass a file with a JSON schema.") from error
    if not isinstance(schema, dict):
        raise UsageError(f"--schema {path!r} holds {type(schema).__name__}; expected an object, a JSON schema.")
    return schema
