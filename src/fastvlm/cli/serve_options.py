"""The options of `fastvlm serve`, made from the declarations of its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from typing import Any

import typer

from fastvlm.server.settings import Setting, declared_settings

# None is the default of every option: a setting that is not given is left to the environment and the file.
_HINTS = {str: str | None, int: int | None, float: float | None, bool: bool | None, tuple: list[str] | None}


def with_setting_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with one option per setting before its own; it receives them as keyword arguments."""
    own = [one for one in signature(verb, eval_str=True).parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    options = [_parameter(setting) for setting in declared_settings().values() if setting.group]
    verb.__signature__ = Signature([*options, *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in own)])  # type: ignore[attr-defined]
    return verb


def _parameter(setting: Setting) -> Parameter:
    flags = [setting.flag, setting.short] if setting.short else [setting.flag]
    metavar = None if setting.kind is bool else setting.metavar
    option = typer.Option(None, *flags, metavar=metavar, help=setting.help, rich_help_panel=setting.group)
    return Parameter(setting.name, Parameter.KEYWORD_ONLY, default=option, annotation=_HINTS[setting.kind])


def chosen_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line; a flag stands for the opposite of its default."""
    settings = declared_settings()
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if settings[name].kind is bool and value:
            chosen[name] = not settings[name].default
        elif value is not None:
            chosen[name] = tuple(value) if isinstance(value, list) else value
    return chosen
