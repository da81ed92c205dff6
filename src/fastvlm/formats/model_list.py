"""The models on this machine: the shipped one, those of the models folder, those of the Hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastvlm.errors import CheckpointError
from fastvlm.formats.models_folder import models_of_folder
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.formats.summary import ModelSummary, summarize
from fastvlm.hub.cache import cached_revisions


@dataclass(frozen=True)
class ListedModel:
    """A model on this machine.

    Args:
        name: what ``-m`` takes.
        place: "shipped" with the package, in the models "folder", or in the Hub's "cache".
        revision: branch or tag, else the commit, of a cached model.
        commit: of a cached model.
        path: its folder.
        summary: layout, size, bits, image size, license.
    """

    name: str
    place: Literal["shipped", "folder", "cache"]
    revision: str | None
    commit: str | None
    path: Path
    summary: ModelSummary


def list_models() -> Iterator[ListedModel]:
    """Every FastVLM on this machine, complete or not; cached models of other kinds are left out."""
    for name, path in _shipped():
        yield from _listed(name, "shipped", path)
    for name, path in models_of_folder():
        yield from _listed(name, "folder", path)
    for found in cached_revisions():
        revision = found.refs[0] if found.refs else found.commit
        yield from _listed(found.repository, "cache", found.path, revision, found.commit)


def _shipped() -> list[tuple[str, Path]]:
    try:
        return [(SHIPPED, checkpoint_path(SHIPPED))]
    except CheckpointError:  # an installation without it
        return []


def _listed(
    name: str,
    place: Literal["shipped", "folder", "cache"],
    path: Path,
    revision: str | None = None,
    commit: str | None = None,
) -> Iterator[ListedModel]:
    summary = summarize(path)
    if summary is not None:
        yield ListedModel(name, place, revision, commit, path, summary)
