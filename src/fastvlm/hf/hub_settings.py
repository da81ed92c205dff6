"""Settings of a processor's `from_pretrained`, and those in a repository's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from fastvlm.errors import CheckpointError
from fastvlm.formats.apple_config import placeholder_id
from fastvlm.formats.json_files import read_json

_HUB_SETTINGS = frozenset({"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"})
# Passed to every processor by transformers' auto classes and pipelines; without effect here.
_AUTO_SETTINGS = frozenset(
    {"trust_remote_code", "use_fast", "backend", "code_revision", "_commit_hash", "_from_auto", "_from_pipeline"}
)


def hub_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for the Hub's client; unknown names are refused.

    Raises:
        TypeError: an unknown name.
    """
    unknown = sorted(set(given) - _HUB_SETTINGS - _AUTO_SETTINGS)
    if unknown:
        raise TypeError(
            f"FastVlmProcessor.from_pretrained got the unknown setting {unknown[0]!r}. Known are image_size, "
            f"image_fit, padding_side, chat_template, image_token_id, {', '.join(sorted(_HUB_SETTINGS))}."
        )
    return {key: value for key, value in given.items() if key in _HUB_SETTINGS and value is not None}


def refuse_missing_folder(name_or_path: Any) -> None:
    """Raise for a path to a missing folder; a Hub id (``name`` or ``owner/name``) passes."""
    path = Path(name_or_path)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or path.parts[0] in {".", ".."}):
        raise CheckpointError(f"There is no folder {str(path)!r}. Pass a model folder, or a Hub id such as owner/name.")


def model_config(name_or_path: Any, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The model's ``config.json``; empty if there is none."""
    found = cached_file(name_or_path, "config.json", _raise_exceptions_for_missing_entries=False, **hub)
    content = read_json(Path(found)) if found else {}
    return content if isinstance(content, dict) else {}


def configured_image_token_id(config: Mapping[str, Any]) -> int | None:
    """`image_token_index` of the model's ``config.json``, if it has one; of Apple's, its equivalent."""
    if config.get("model_type") == "llava_qwen2":
        return placeholder_id(config)
    value = config.get("image_token_index", config.get("image_token_id"))
    return value if isinstance(value, int) and value >= 0 else None
