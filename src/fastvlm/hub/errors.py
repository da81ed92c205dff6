"""Errors of the Hub's client as one readable line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvlm.errors import CheckpointError, FastVlmError
from fastvlm.storage.write_errors import write_error

# Errors of the cache's disk or of its permissions, not of the Hub.
_OF_THE_DISK = {
    *(errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
}


@contextmanager
def clear_hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of huggingface_hub inside into CheckpointError, StorageError or UsageError.

    Args:
        repository: ``owner/name``.
        revision: the branch, tag or commit asked for; None for the default branch.

    Raises:
        CheckpointError: no such repository or revision, a gated or private one, offline, a broken connection.
        StorageError: the disk of the cache is full or failed.
        UsageError: the cache cannot be written.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415  # not for a local folder

    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]  # base of httpx's errors; newer releases use httpx2
    try:
        yield
    except FastVlmError:
        raise
    except (HFValidationError, transport_error, OSError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise write_error(_cache_folder(), error) from error
        raise CheckpointError(_message(error, repository, revision)) from error


def _message(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = repr(repository) if revision is None else f"{repository!r} at revision {revision!r}"
    if isinstance(error, GatedRepoError):
        return f"{at} is gated: accept its terms on https://huggingface.co/{repository} and sign in (`hf auth login`)."
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub has {repository!r}, but no such revision: {revision!r}."
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return f"There is no folder and no Hub repository {at} (or it is private: sign in with `hf auth login`)."
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return (
            f"{at} is not in the local cache, and the Hub cannot be asked (offline mode, or no connection). Connect "
            "once to fetch it, or give the path of a folder."
        )
    reason = next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__
    return (
        f"Fetching {at} from the Hub failed: {reason}. What has arrived is kept: run it again, or get "
        "the rest by hand (docs/models.md)."
    )


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

    return Path(HF_HUB_CACHE)
