"""Settings from where they may stand: the command line over the environment over a file over the defaults."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.server.settings import ServeSettings

__all__ = ["CONFIG_VARIABLE", "PREFIX", "read_settings"]

PREFIX = "FASTVLM_SERVE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def read_settings(
    given: Mapping[str, Any], environment: Mapping[str, str], config_file: str | Path | None = None
) -> ServeSettings:
    """The settings of a server.

    Args:
        given: what the command line says; wins over all else.
        environment: ``FASTVLM_SERVE_<NAME>`` for each name of :class:`ServeSettings`; lists are joined by commas.
        config_file: TOML with the same names at its top level; None for what FASTVLM_SERVE_CONFIG names, if it does.

    Raises:
        UsageError: a name that is not known, a value of another kind, a file that cannot be read.
    """
    kinds = {name: _kind(hint) for name, hint in get_type_hints(ServeSettings).items()}
    config_file = config_file or environment.get(CONFIG_VARIABLE) or None
    values: dict[str, Any] = {}
    if config_file is not None:
        values |= _from_file(Path(config_file), kinds)
    values |= _from_environment(environment, kinds)
    values |= given
    return ServeSettings(**values)


def _kind(hint: Any) -> type:
    """str, int, float, bool or tuple; a hint that allows None gives what else it allows."""
    options = [option for option in get_args(hint) if option is not type(None) and option is not Ellipsis]
    if getattr(hint, "__origin__", None) is tuple:
        return tuple
    return options[0] if options else hint  # type: ignore[no-any-return]


def _from_environment(environment: Mapping[str, str], kinds: Mapping[str, type]) -> dict[str, Any]:
    values = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in kinds:
            raise UsageError(f"The environment sets {variable}, which is no setting. {_known()}")
        values[name] = _from_text(variable, text, kinds[name])
    return values


def _from_text(variable: str, text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise UsageError(f"{variable} is {text!r}; expected {' or '.join((_TRUE[1], _FALSE[1]))}.")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError as error:
        raise UsageError(f"{variable} is {text!r}; expected {_noun(kind)}.") from error


def _from_file(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    try:
        content = _parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The settings file {str(path)!r} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # of TOML, of UTF-8
        raise UsageError(f"The settings file {str(path)!r} is no TOML: {error}.") from error
    values = {}
    for name, value in content.items():
        if name not in kinds:
            raise UsageError(f"The settings file {str(path)!r} sets {name!r}, which is no setting. {_known()}")
        values[name] = _of_kind(f"{name} in {str(path)!r}", value, kinds[name])
    return values


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - only in newer Pythons
    else:
        try:
            import tomli as tomllib  # noqa: PLC0415 - its twin for Python 3.10
        except ImportError as error:
            raise MissingExtraError("tomli", "serve", "A settings file on Python 3.10") from error
    return tomllib.loads(text)


def _of_kind(what: str, value: Any, kind: type) -> Any:
    if kind is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    is_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if is_number or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        return value
    raise UsageError(f"{what} is {value!r}; expected {_noun(kind)}.")


def _noun(kind: type) -> str:
    nouns = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of texts", str: "a text"}
    return nouns[kind]


def _known() -> str:
    return f"Known are {', '.join(field.name for field in fields(ServeSettings))}."
