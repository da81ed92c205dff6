"""The JSON schema that an answer follows, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.formats.json_files import parse_json

_MAX_BYTES = 256 * 1024  # the grammar takes 64 Ki characters, of at most four bytes


@dataclass(frozen=True)
class SchemaChoice:
    """A JSON schema in a file or as text; neither for a free answer.

    Raises:
        UsageError: both given, a file that cannot be read, or no JSON object.
        MissingExtraError: the package that enforces schemas is not installed.
    """

    schema_file: Annotated[
        str | None,
        typer.Option("--schema", metavar="FILE", help="JSON schema that the answer follows; it is JSON then."),
    ] = None
    schema_text: Annotated[
        str | None, typer.Option("--json-schema", metavar="TEXT", help="The schema itself, in place of its file.")
    ] = None

    def __post_init__(self) -> None:
        if self.schema_file is not None and self.schema_text is not None:
            raise UsageError("--schema and --json-schema were both given; expected one of them.")
        if self.schema is not None:
            check_enforceable("--schema")

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """The schema, None if none was given. Whether it can be enforced, the open model finds out."""
        if self.schema_file is not None:
            return _schema(f"--schema {self.schema_file}", _read(Path(self.schema_file).expanduser()))
        if self.schema_text is not None:
            return _schema("--json-schema", self.schema_text.encode(errors="replace"))
        return None


def check_enforceable(purpose: str) -> None:
    """Raise MissingExtraError, which says that `purpose` needs it, if no package enforces schemas."""
    if find_spec("llguidance") is None:
        raise MissingExtraError("llguidance", "serve", purpose)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--schema {file} cannot be read: {reason}. Expected the file of a JSON schema.") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"--schema {file} has more than {_MAX_BYTES} bytes; expected a smaller JSON schema.")
    return data


def _schema(where: str, data: bytes) -> dict[str, Any]:
    try:
        schema = parse_json(data)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}. Expected a JSON schema.") from error
    if not isinstance(schema, dict):
        raise UsageError(
            f"{where} holds {type(schema).__name__}; expected a JSON schema as an object, such as "
            '{"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}.'
        )
    return schema
