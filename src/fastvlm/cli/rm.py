"""`fastvlm rm`: remove a model from the models folder or from the Hub's cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from fastvlm.cli.options import DebugOption, QuietOption
from fastvlm.cli.terminal import Notes, in_bytes, printable, quiet_warnings
from fastvlm.errors import CheckpointError, UsageError

_OF_A_MODEL = ("*.md", "NOTICE*", "CREDITS*", "*.model", "*.py", ".gitattributes")  # besides what is downloaded
_SUBFOLDERS = ("llava_qwen2", ".cache")  # of `fastvlm convert`, of `hf download --local-dir`


@dataclass(frozen=True)
class _Removal:
    name: str
    path: Path
    num_bytes: int
    remove: Callable[[], None]


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="A model as `fastvlm ls` lists it.")],
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", help="Remove only this branch, tag or commit of a cached one."),
    ] = None,
    is_confirmed: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Remove models from the models folder or from the Hub's cache.

    Asks first on a terminal; elsewhere --yes is required. Only what `fastvlm ls` lists by name is removed, and a folder
    only if it holds nothing but the files of a model. Folders elsewhere are yours to delete.

    \b
    Examples:
      fastvlm rm apple/FastVLM-1.5B
      fastvlm rm fastvlm-0.5b-int8 --yes
    """
    notes = Notes(is_quiet=is_quiet)
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    removals = [_removal(name, revision) for name in names]  # a wrong name stops it before anything is removed
    for removal in removals:
        what = f"{removal.name} ({in_bytes(removal.num_bytes)} in {removal.path})"
        if not is_confirmed and not _asks(what):
            notes.say(f"kept {what}")
            continue
        removal.remove()
        notes.say(f"removed {what}")


def _asks(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"Removing {what} needs a yes, and this is no terminal. Add --yes.")
    sys.stderr.write(printable(f"Remove {what}? [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _removal(name: str, revision: str | None) -> _Removal:
    from fastvlm.formats.models_folder import model_of_folder, models_folder
    from fastvlm.formats.places import SHIPPED
    from fastvlm.formats.summary import layout_of
    from fastvlm.hub.cache import cached_revisions, remove_revisions, removed_bytes

    folder = model_of_folder(name) if revision is None else None
    if folder is not None:
        return _folder_removal(name, folder)
    cached = cached_revisions(name)
    if revision is not None:
        cached = [each for each in cached if revision in (*each.refs, each.commit, each.commit[:12])]
    if cached:
        if not any(layout_of(each.path) for each in cached):
            raise CheckpointError(
                f"{name!r} in the Hub's cache is not a FastVLM, so it is not removed. See: hf cache rm"
            )
        place = cached[0].path if revision is not None else cached[0].path.parent.parent
        return _Removal(name, place, removed_bytes(cached), lambda: remove_revisions(cached))
    if name == SHIPPED:
        raise UsageError("The model 'mini' is a part of the package: it goes with `pip uninstall fastvlm`.")
    if Path(name).exists():
        raise UsageError(
            f"{name!r} is a path. Only models in {models_folder()} and in the Hub's cache are removed, by the name "
            "that `fastvlm ls` lists; delete other folders yourself."
        )
    at = "" if revision is None else f" at revision {revision!r}"
    raise UsageError(f"There is no model {name!r}{at} in {models_folder()} or in the Hub's cache. See: fastvlm ls")


def _folder_removal(name: str, folder: Path) -> _Removal:
    from fastvlm.formats.summary import summarize
    from fastvlm.storage.whole_folders import remove_folder

    summary = summarize(folder)
    if summary is None:
        raise CheckpointError(f"{folder} is not the folder of a FastVLM, so it is not removed.")
    if folder.is_symlink():
        return _Removal(name, folder, 0, folder.unlink)  # the folder that it leads to stays
    if strangers := _strangers(folder):
        raise CheckpointError(
            f"{folder} holds files that are not a model's ({', '.join(strangers[:3])}), so it is not removed. Move "
            "them elsewhere, or delete the folder yourself."
        )
    return _Removal(name, folder, summary.num_bytes, lambda: remove_folder(folder))


def _strangers(folder: Path) -> list[str]:
    """Files in `folder` that do not belong to a model."""
    from fastvlm.hub.files import TEXT_PATTERNS, WEIGHT_PATTERNS

    known = (*TEXT_PATTERNS, *WEIGHT_PATTERNS, *_OF_A_MODEL)
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink())
    return [
        name.as_posix()
        for name in inside
        if not (len(name.parts) == 1 and any(fnmatchcase(name.name, pattern) for pattern in known))
        and not (len(name.parts) > 1 and name.parts[0] in _SUBFOLDERS)
    ]
