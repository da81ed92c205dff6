"""Reads settings: the command line overrides the environment, the environment a TOML file, the file the defaults."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.server.settings import FORMER_NAMES, ServeSettings, declared_settings

PREFIX = "FASTVLM_SERVE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
_BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of strings", str: "a string"}


def read_settings(
    options: Mapping[str, Any], environment: Mapping[str, str], config_file: str | Path | None = None
) -> ServeSettings:
    """The settings of a server.

    Args:
        options: settings from the command line.
        environment: ``FASTVLM_SERVE_<NAME>`` for each name of :class:`ServeSettings`; lists are joined by commas.
        config_file: TOML with the same names at its top level; None for the file that FASTVLM_SERVE_CONFIG names.

    Raises:
        UsageError: an unknown name, a value of another type or out of range, a file that cannot be read.
    """
    path = config_file or environment.get(CONFIG_VARIABLE)
    values = dict[str, Any]()
    if path:
        in_file = {f"{name} in {str(path)!r}": (name, value) for name, value in _read_toml(Path(path)).items()}
        values |= _convert(in_file, _check_type)
    variables = {
        variable: (variable.removeprefix(PREFIX).lower(), text)
        for variable, text in environment.items()
        if variable.startswith(PREFIX) and variable != CONFIG_VARIABLE
    }
    return ServeSettings(**values | _convert(variables, _parse) | dict(options))


def _convert(source: Mapping[str, tuple[str, Any]], convert: Callable[[str, Any, type], Any]) -> dict[str, Any]:
    """Name -> value of each item of one source: label for messages -> (name, raw value)."""
    settings, values = declared_settings(), dict[str, Any]()
    for label, (name, raw) in source.items():
        present = FORMER_NAMES.get(name, name)
        if present not in settings:
            raise UsageError(f"{label} is not a setting. Known settings: {', '.join(settings)}.")
        if present in values:
            raise UsageError(f"{label} is set twice, as {present} and under its former name. Remove one of them.")
        values[present] = convert(label, raw, settings[present].kind)
    return values


def _parse(label: str, text: str, kind: type) -> Any:
    """The value of a variable of the environment."""
    if kind is tuple:
        return tuple(word for word in map(str.strip, text.split(",")) if word)
    with contextlib.suppress(ValueError, KeyError):
        return _BOOLS[text.lower()] if kind is bool else kind(text)
    raise _wrong_type(label, text, kind)


def _check_type(label: str, value: Any, kind: type) -> Any:
    """A value of a TOML file, if it is of the right type; an integer may stand for a float."""
    if kind is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise _wrong_type(label, value, kind)


def _wrong_type(label: str, value: object, kind: type) -> UsageError:
    return UsageError(f"{label} is {value!r}; expected {_NOUNS[kind]}.")


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - only in newer Pythons
    else:
        try:
            import tomli as tomllib  # noqa: PLC0415 - its twin for Python 3.10
        except ImportError as error:
            raise MissingExtraError("tomli", "serve", "A settings file on Python 3.10") from error
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The settings file {str(path)!r} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # of TOML, of UTF-8
        raise UsageError(f"The settings file {str(path)!r} is not valid TOML: {error}.") from error
