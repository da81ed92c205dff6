"""`--use` and `--save-as`: options of a command line from a template, and into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastvlm.cli.options import Invocation
from fastvlm.cli.template_files import read_template, template_file
from fastvlm.errors import UsageError

# What a template does not keep: itself, the schema (it has a place of its own), and how answers are shown.
_NOT_KEPT = {"use", "save-as", "schema", "json-schema", "each", "json", "quiet", "debug", "help"}
_PLACES = ("model", "adapter")  # options that may name a folder


def _use(context: typer.Context, name: str | None) -> str | None:
    """Make the template's options the defaults of this command line."""
    if name is None or context.resilient_parsing:
        return name
    template = read_template(name)
    known = _kept_parameters(context)
    if unknown := sorted(set(template.options) - set(known)):
        raise UsageError(
            f"The template {template_file(name)} has an option {unknown[0]!r}; known are {', '.join(sorted(known))}."
        )
    context.default_map = {known[flag]: value for flag, value in template.options.items()}
    context.ensure_object(Invocation).template = template
    return name


def _check_name(context: typer.Context, name: str | None) -> str | None:
    if name is not None and not context.resilient_parsing:
        template_file(name)
    return name


def given_options(context: typer.Context) -> dict[str, Any]:
    """The options that were typed or came from a template, by flag; folders by their absolute path."""
    given = {
        flag: context.params[name]
        for flag, name in _kept_parameters(context).items()
        if _is_given(context, name) and context.params[name] is not None
    }
    for flag in _PLACES:
        if flag in given and Path(given[flag]).expanduser().is_dir():
            given[flag] = str(Path(given[flag]).expanduser().absolute())
    return given


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def _kept_parameters(context: typer.Context) -> dict[str, str]:
    """The parameter's name for each flag that a template keeps."""
    flags = {
        max(parameter.opts, key=len)[2:]: str(parameter.name)
        for parameter in context.command.params
        if parameter.param_type_name == "option"
    }
    return {flag: name for flag, name in flags.items() if flag not in _NOT_KEPT}


UseOption = Annotated[
    str | None,
    typer.Option(
        "--use",
        metavar="NAME",
        callback=_use,
        is_eager=True,
        help="Question, schema and options of a template, where none are given here.",
    ),
]
SaveAsOption = Annotated[
    str | None,
    typer.Option(
        "--save-as",
        metavar="NAME",
        callback=_check_name,
        help="Save question, schema and options as a template; without an image nothing is asked.",
    ),
]
