"""Resolves a name to a local folder: an existing path, a model of the models folder, or a repository of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.errors import CheckpointError
from fastvlm.formats.models_folder import model_of_folder, models_folder
from fastvlm.formats.summary import layout_of
from fastvlm.hub.errors import clear_hub_errors
from fastvlm.hub.files import TEXT_PATTERNS, WEIGHT_PATTERNS

if TYPE_CHECKING:
    from fastvlm.hub.download import Download

Progress = Callable[[int, int], None]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | os.PathLike[str], *, subfolder: str = "", **hub: Any) -> Path:
    """The folder that `name` stands for: an existing path, else a model of the models folder, else a Hub repository.

    Args:
        name: a folder, a name in the models folder, or ``owner/repository`` on the Hub.
        subfolder: folder inside it that holds the checkpoint.
        hub: `revision` (branch, tag or commit), `token`, `cache_dir`, `force_download`, `local_files_only`, for
            huggingface_hub; ``HF_HUB_OFFLINE=1`` is respected.

    Raises:
        CheckpointError: there is no such folder or repository, it is gated, or offline and not in the cache.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise CheckpointError(f"{path} is a file; expected the folder of a checkpoint, with config.json and weights.")
    if path.is_dir():
        return path / subfolder
    text = str(name)
    if isinstance(name, str) and hub.get("revision") is None and (found := model_of_folder(name)) is not None:
        return found / subfolder
    if isinstance(name, os.PathLike) or not REPOSITORY.fullmatch(text) or text.startswith("."):
        raise CheckpointError(
            f"There is no folder {text!r}, also not in {models_folder()}, and it is no Hub repository's name either "
            "('owner/name', as in 'apple/FastVLM-0.5B'). Check the path; `fastvlm ls` lists the models that are here."
        )
    return hub_folder(text, subfolder, **{key: value for key, value in hub.items() if value is not None})


def hub_folder(repository: str, subfolder: str = "", **hub: Any) -> Path:
    """The cached folder of a Hub repository, downloaded as far as it is missing; arguments as :func:`local_folder`."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # not for a folder that is here
    from huggingface_hub.constants import HF_HUB_OFFLINE  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""

    def fetch(pattern: str, **settings: Any) -> Path:
        wanted = [prefix + each for each in (*TEXT_PATTERNS, pattern)]
        # "*" also matches "/" in the Hub's patterns: without this, files of unrelated folders would come along.
        settings = {**hub, **settings, "allow_patterns": wanted, "ignore_patterns": [prefix + "*/*"]}
        return Path(snapshot_download(repository, **settings)) / prefix

    def is_cached() -> bool:
        try:
            return bool(fetch(WEIGHT_PATTERNS[0], local_files_only=True))
        except LocalEntryNotFoundError:
            return False

    with clear_hub_errors(repository, hub.get("revision")):
        if not subfolder and hub.keys() <= {"revision"} and not HF_HUB_OFFLINE and not is_cached():
            download_checkpoint(repository, hub.get("revision"))
        for pattern in WEIGHT_PATTERNS:
            folder = fetch(pattern)
            if list(folder.glob(pattern)):
                break
    return folder


def download_checkpoint(
    repository: str,
    revision: str | None,
    found: Download | None = None,
    progress: Progress = lambda _done, _total: None,
) -> None:
    """Download the files of a checkpoint into the Hub's cache, the configuration first.

    Unlike huggingface_hub's own snapshots, an interrupted download is continued, and Ctrl-C ends it at once.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None for the default branch.
        found: the list of files, if the Hub has been asked for it.
        progress: called with (bytes that are there, bytes in all).

    Raises:
        CheckpointError: the Hub refuses, or the repository holds no FastVLM.
    """
    from fastvlm.hub.download import download_file, find_download  # noqa: PLC0415

    download = found or find_download(repository, revision)
    done = 0
    for file in sorted(download.files, key=lambda file: (file.name != "config.json", file.num_bytes)):
        path = download_file(download, file, _after(done, download.num_bytes, progress))
        if file.name == "config.json" and layout_of(path.parent) is None:
            raise CheckpointError(
                f"{repository!r} is no FastVLM: its config.json has another model_type than 'fast_vlm' and Apple's "
                "'llava_qwen2'. Its weights were not downloaded."
            )
        done += file.num_bytes
        progress(done, download.num_bytes)


def _after(before: int, total: int, progress: Progress) -> Callable[[int], None]:
    """Reports the position in one file to `progress`, which counts the bytes of all; `before` are those of others."""
    return lambda position: progress(before + position, total)
