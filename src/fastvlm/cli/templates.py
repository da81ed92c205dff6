"""`fastvlm templates`: what `ask --save-as` has saved."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from fastvlm.cli.options import DebugOption, JsonOption
from fastvlm.cli.template_files import read_template, remove_template, template_file, template_names
from fastvlm.cli.terminal import print_json, printable, say
from fastvlm.cli.user_folders import templates_folder
from fastvlm.errors import UsageError


def templates(
    remove: Annotated[str | None, typer.Option("--remove", metavar="NAME", help="Remove this template.")] = None,
    is_json: JsonOption = False,
    is_debug: DebugOption = False,
) -> None:
    """List the templates of fastvlm ask --use: name and question.

    Each is a JSON file, NAME.json, that may be read and edited, in $FASTVLM_HOME/templates, or else in
    ~/.config/fastvlm/templates (XDG_CONFIG_HOME is respected).

    \b
    Examples:
      fastvlm ask "What is the total?" --image-size 1024 --save-as receipt
      fastvlm ask --use receipt photo.jpg
      fastvlm templates
      fastvlm templates --remove receipt
    """
    del is_debug  # its callback has noted it
    if remove is not None:
        remove_template(remove)
        return
    rows = [_as_dict(name) for name in template_names()]
    if is_json:
        print_json({"templates": rows, "folder": str(templates_folder())})
        return
    if not rows:
        say("note", f'There are no templates in {templates_folder()}. fastvlm ask "QUESTION" --save-as NAME makes one.')
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        text = row.get("error") or row["question"] or "(no question)"
        typer.echo(printable(f"{row['name']:{width}}  {' '.join(text.split())}"))


def _as_dict(name: str) -> dict[str, Any]:
    """A template for JSON; what is wrong with it in place of its content."""
    about = {"name": name, "path": str(template_file(name))}
    try:
        return {**about, **asdict(read_template(name))}
    except UsageError as error:
        return {**about, "error": str(error)}
