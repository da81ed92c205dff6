"""Options of `fastvlm train`, in groups, and the parser of `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastvlm.cli.options import grouped_option as _option
from fastvlm.errors import UsageError

_RECIPE, _RUN = "Recipe", "Run"

Model = Annotated[
    str | None,
    _option(_RECIPE, "--model", "-m", metavar="MODEL", text="Begin from this checkpoint instead of the recipe's."),
]
Data = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--data",
        metavar="PATH",
        text="Samples, instead of the recipe's: .json, .jsonl, .tar, a folder of these or of `datasets`; repeatable.",
    ),
]
ImagesIn = Annotated[
    str | None, _option(_RECIPE, "--images-in", metavar="DIR", text="Folder where the image paths of --data begin.")
]
Ignored = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--ignore",
        metavar="NAME",
        text="Leave out an unknown column of --data's records, or kind of shard members; repeatable.",
    ),
]
Settings = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--set",
        metavar="KEY=VALUE",
        text="Change a key: parts.encoder=frozen, batch_size=32, eval.fraction=0.02; repeatable.",
    ),
]
MaxSteps = Annotated[
    int | None, _option(_RECIPE, "--max-steps", metavar="N", text="Steps in all, instead of the recipe's epochs.")
]
Recipes = Annotated[bool, _option(_RECIPE, "--recipes", text="List the recipes that come with the package.")]
Out = Annotated[
    Path | None, _option(_RUN, "--out", metavar="DIR", text="The run's folder; if not given, ./train-NAME.")
]
Check = Annotated[
    bool, _option(_RUN, "--check", text="Read every record and image, show lengths and three samples; train nothing.")
]
Resume = Annotated[
    bool, _option(_RUN, "--resume", text="Continue from the newest checkpoint in --out; begin if there is none.")
]

AllowChangedData = Annotated[
    bool,
    _option(_RUN, "--allow-changed-data", text="With --resume: continue although the samples have changed."),
]


def read_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse dotted keys and YAML values.

    Raises:
        UsageError: a setting without '=', or a value that is not valid YAML.
    """
    import yaml

    found: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set is {setting!r}; expected KEY=VALUE, such as batch_size=32.")
        try:
            found[key.strip()] = as_number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise UsageError(f"--set {key} is {value!r}, which cannot be read; quote it as YAML does.") from None
    return found


def as_number(value: Any) -> Any:
    """Convert "1e-5", which YAML reads as a string because it has no point, to a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
