"""Templates: a question with its schema and options, each a JSON file in the user's folder.

{"question": "What is the total?", "schema": {"type": "number"}, "options": {"image-size": "1024"}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.cli.json_objects import read_object
from fastvlm.cli.user_folders import templates_folder
from fastvlm.errors import UsageError
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.write_errors import clear_write_errors

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_EXPECTED = 'an object with "question", "schema" and "options"; see docs/quickstart.md'


@dataclass(frozen=True)
class Template:
    """What `ask --use` takes where the command line gives nothing else.

    Args:
        question: None if the template has none.
        schema: JSON schema of the answer, None for a free answer.
        options: values by the names of flags without their dashes, such as ``"image-size"``.
    """

    question: str | None = None
    schema: dict[str, Any] | None = None
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def template_file(name: str) -> Path:
    """Where the template `name` is, or would be. Raises UsageError for what is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A template cannot be called {name!r}; expected up to 64 letters, digits, '.', '_' or '-', and a letter "
            "or digit first."
        )
    return templates_folder() / f"{name}.json"


def template_names() -> list[str]:
    """The names of all templates, sorted."""
    return sorted(file.stem for file in templates_folder().glob("*.json") if _NAME.fullmatch(file.stem))


def read_template(name: str) -> Template:
    """The template `name`. Raises UsageError if there is none, or its file is not one."""
    file = template_file(name)
    if not file.is_file():
        known = ", ".join(template_names()) or "none; --save-as makes one"
        raise UsageError(f"There is no template {name!r}. Known are: {known}.")
    content = read_object(file, f"The template {file}", _EXPECTED)
    options = content.get("options", {})
    is_valid = (
        set(content) <= {"question", "schema", "options"}
        and isinstance(content.get("question"), (str, type(None)))
        and isinstance(content.get("schema"), (dict, type(None)))
        and isinstance(options, dict)
        and all(isinstance(value, (str, int, float)) for value in options.values())
    )
    if not is_valid:
        raise UsageError(f"The template {file} has other content; expected {_EXPECTED}.")
    return Template(content.get("question"), content.get("schema"), options)


def write_template(name: str, template: Template) -> Path:
    """Write the template `name`, in place of an earlier one, and return its file.

    Raises:
        UsageError: what is no name; a place that cannot be written.
        StorageError: the disk is full or failed.
    """
    file = template_file(name)
    with clear_write_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in asdict(template).items() if value is not None}
    write_file(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    return file


def remove_template(name: str) -> None:
    """Remove the template `name`. Raises UsageError if there is none, or it cannot be removed."""
    file = template_file(name)
    with clear_write_errors(file):
        if not file.is_file():
            raise UsageError(f"There is no template {name!r}. Known are: {', '.join(template_names()) or 'none'}.")
        file.unlink()
