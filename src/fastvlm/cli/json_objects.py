"""Small JSON files that a user writes or edits: schemas and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.formats.json_files import parse_json

_MAX_BYTES = 256 * 1024  # a grammar takes a schema of 64 Ki characters, of at most four bytes


def read_object(file: Path, where: str, expected: str) -> dict[str, Any]:
    """The JSON object in `file`.

    Args:
        file: read up to a limit of 256 KiB.
        where: what messages call the file.
        expected: what messages say should have been there.

    Raises:
        UsageError: it cannot be read, is too large, or holds no JSON object.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{where} cannot be read: {reason}. Expected {expected}.") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{where} has more than {_MAX_BYTES} bytes; expected {expected}.")
    return parse_object(data, where, expected)


def parse_object(data: bytes, where: str, expected: str) -> dict[str, Any]:
    """The JSON object in `data`; arguments and errors as of :func:`read_object`."""
    try:
        content = parse_json(data)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}. Expected {expected}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{where} holds {type(content).__name__}; expected {expected}.")
    return content
