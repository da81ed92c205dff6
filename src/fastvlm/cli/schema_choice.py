"""The JSON schema that an answer follows, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvlm.cli.json_objects import parse_object, read_object
from fastvlm.errors import MissingExtraError, UsageError

_EXPECTED = (
    'a JSON schema as an object, such as {"type": "object", "properties": {"total": {"type": "number"}}, '
    '"required": ["total"]}'
)


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
        enforceable(self.schema)

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """The schema, None if none was given. Whether it can be enforced, the open model finds out."""
        if self.schema_file is not None:
            return read_object(Path(self.schema_file).expanduser(), f"--schema {self.schema_file}", _EXPECTED)
        if self.schema_text is not None:
            return parse_object(self.schema_text.encode(errors="replace"), "--json-schema", _EXPECTED)
        return None


def enforceable(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """`schema`. Raises MissingExtraError if there is one and no package that enforces it."""
    if schema is not None and find_spec("llguidance") is None:
        raise MissingExtraError("llguidance", "serve", "--schema")
    return schema
