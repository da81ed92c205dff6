"""Resolves a name to a local folder: an existing path, or a Hub repository from the network or the cache.

Only configuration, tokenizer and weight files are downloaded, never Python: code in a repository is not run, and
``auto_map`` in a config is ignored.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError

CHECKSUM_FILE = "SHA256SUMS"
_TEXT_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*", CHECKSUM_FILE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | os.PathLike[str], *, subfolder: str = "", **hub: Any) -> Path:
    """The folder that `name` stands for; an existing path wins over a Hub repository of the same name.

    Args:
        name: a folder, or ``owner/repository`` on the Hub.
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
    if isinstance(name, os.PathLike) or not _REPOSITORY.fullmatch(text) or text.startswith("."):
        raise CheckpointError(
            f"There is no folder {text!r}, and it is no Hub repository's name either ('owner/name', as in "
            "'apple/FastVLM-0.5B'). Check the path; the shipped checkpoint is called 'mini'."
        )
    return _fetch(text, subfolder, {key: value for key, value in hub.items() if value is not None})


def _fetch(repository: str, subfolder: str, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # not for a folder that is here
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    at = f"{repository!r} at revision {hub['revision']!r}" if "revision" in hub else repr(repository)

    def fetch(*patterns: str) -> Path:
        wanted = [prefix + pattern for pattern in patterns]
        # "*" also matches "/" in the Hub's patterns: without this, files of unrelated folders would come along.
        unwanted = [prefix + "*/*"]
        return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted, **hub)) / prefix

    try:
        folder = fetch(*_TEXT_FILES, "*.safetensors")
        if not list(folder.glob("*.safetensors")):
            folder = fetch(*_TEXT_FILES, "*.bin")
    except GatedRepoError as error:
        raise CheckpointError(
            f"{at} is gated: accept its terms on https://huggingface.co/{repository} and sign in (`hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"The Hub has {repository!r}, but no such revision: {hub.get('revision')!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"There is no folder and no Hub repository {at} (or it is private: sign in with `hf auth login`)."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{at} is not in the local cache, and the Hub cannot be asked (offline mode, or no connection). Connect "
            "once to fetch it, or give the path of a folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"Fetching {at} from the Hub failed: {str(error).splitlines()[0]}") from error
    return folder
