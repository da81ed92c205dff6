"""Verbs that other installed distributions add, by entry points of the group ``fastvlm.verbs``."""

from __future__ import annotations

from typing import Any

import typer

from fastvlm.errors import InstallationError

GROUP = "fastvlm.verbs"
RECIPES_VERB = "demo-data"


def find_added_verb(name: str) -> Any:
    """The click command of the verb `name`, None if no installed distribution has it.

    Looked up only for a name that `fastvlm` does not know, because the lookup reads the metadata of every distribution.

    Raises:
        InstallationError: a verb of ``fastvlm-recipes``, which is not installed.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        return typer.main.get_command(entry.load())
    if name == RECIPES_VERB:
        raise InstallationError(
            f"fastvlm {name} is part of fastvlm-recipes, which is not installed. In a checkout of the repository run: "
            "pip install ./recipes"
        )
    return None
