"""Download of a checkpoint from the Hub into its cache: first the list of files, then each file.

The files lie where transformers and ``hf download`` put them, in the cache of huggingface_hub (``HF_HOME``,
``HF_HUB_CACHE``). Its client downloads them: proxies, mirrors (``HF_ENDPOINT``) and tokens are its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.errors import CheckpointError
from fastvlm.hub.errors import clear_hub_errors
from fastvlm.hub.files import CARD, needed_files
from fastvlm.hub.large_files import LargeFile, fetch_large_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Args:
        name: its name in the repository's top folder.
        num_bytes: its size.
        sha256: its digest, which the Hub knows of large files only.
        is_cached: True if it is in the cache already.
    """

    name: str
    num_bytes: int
    sha256: str | None
    is_cached: bool


@dataclass(frozen=True)
class Download:
    """What a repository has to download.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit that was asked for; None for the default branch.
        commit: the commit that it stands for.
        files: the files that opening the checkpoint needs, and its card.
        license: the card's ``license`` (with ``license_name``, if it is "other"); None if it states none.
        license_link: the card's ``license_link``; None if it has none.
    """

    repository: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    license: str | None
    license_link: str | None

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Size of the files that are not in the cache."""
        return sum(file.num_bytes for file in self.files if not file.is_cached)


def find_download(repository: str, revision: str | None = None) -> Download:
    """Ask the Hub which files `repository` has at `revision`.

    Raises:
        CheckpointError: as :func:`clear_hub_errors`; or the repository holds no checkpoint.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  # half a second

    with clear_hub_errors(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    siblings = {file.rfilename: file for file in info.siblings or ()}
    names = needed_files(siblings)
    if "config.json" not in names or not any(name.endswith((".safetensors", ".bin")) for name in names):
        shown = ", ".join(sorted(siblings)[:10]) or "no files"
        raise CheckpointError(
            f"{repository!r} holds no checkpoint: expected config.json and weights (*.safetensors or *.bin) in its top "
            f"folder; found {shown}."
        )
    commit = info.sha or ""
    wanted = [*names, *({CARD} & siblings.keys())]
    name, link = _license(info)
    return Download(
        repository, revision, commit, tuple(_file(siblings[n], repository, commit) for n in wanted), name, link
    )


def _file(found: RepoSibling, repository: str, commit: str) -> RemoteFile:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    cached = try_to_load_from_cache(repository, found.rfilename, revision=commit)
    digest = None if found.lfs is None else found.lfs.sha256
    return RemoteFile(found.rfilename, found.size or 0, digest, isinstance(cached, str))


def _license(info: ModelInfo) -> tuple[str | None, str | None]:
    """Name and link of the license in the card's metadata."""
    if info.card_data is None:
        return None, None
    name, its_name, link = (info.card_data.get(key) for key in ("license", "license_name", "license_link"))
    return " ".join(str(each) for each in (name, its_name) if each) or None, None if link is None else str(link)


def download_file(download: Download, file: RemoteFile, on_position: Callable[[int], None] = lambda _: None) -> Path:
    """The path in the cache of `file`, downloaded if it is not there, with the digest that the Hub states.

    A connection that breaks is resumed, and a large file that an interruption cut off is continued. Ctrl-C ends the
    download at once, because this thread downloads. Only a whole file gets its name.

    Args:
        download: what :func:`find_download` found.
        file: one of its files.
        on_position: called with the number of bytes that are there, after each piece of a large file.

    Raises:
        CheckpointError: as :func:`clear_hub_errors`; or other bytes arrived than the Hub states.
        StorageError: the disk is full.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    with clear_hub_errors(download.repository, download.revision):
        if file.sha256 is not None and not file.is_cached:
            fetch_large_file(LargeFile(download.repository, download.commit, file.name, file.sha256), on_position)
        return Path(hf_hub_download(download.repository, file.name, revision=download.commit))
