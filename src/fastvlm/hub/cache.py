"""Checkpoints in the cache of huggingface_hub: listed, and removed by its own means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachedRevision:
    """One commit of a repository in the cache.

    Args:
        repository: ``owner/name``.
        commit: the commit's hash.
        refs: branches and tags that stand for it.
        path: the folder of its files.
        num_bytes: size of its files.
    """

    repository: str
    commit: str
    refs: tuple[str, ...]
    path: Path
    num_bytes: int


def cached_revisions(repository: str | None = None) -> list[CachedRevision]:
    """The commits of all cached models, or of `repository`, by name; models of other kinds included."""
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415
    from huggingface_hub.errors import CacheNotFound  # noqa: PLC0415

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        CachedRevision(repo.repo_id, each.commit_hash, tuple(sorted(each.refs)), each.snapshot_path, each.size_on_disk)
        for repo in repos
        if repo.repo_type == "model" and repository in (None, repo.repo_id)
        for each in repo.revisions
    ]
    return sorted(found, key=lambda each: (each.repository.lower(), each.commit))


def removed_bytes(revisions: list[CachedRevision]) -> int:
    """Bytes that :func:`remove_revisions` would free; files that other commits share stay."""
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415

    freed: int = scan_cache_dir().delete_revisions(*(each.commit for each in revisions)).expected_freed_size
    return freed


def remove_revisions(revisions: list[CachedRevision]) -> None:
    """Remove commits from the cache."""
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415

    scan_cache_dir().delete_revisions(*(each.commit for each in revisions)).execute()
