"""The columns that a record may have, and the refusal of all others by name.

A column that is not known may change what should be learnt: an image under another name, a system prompt, tools. So it
is an error and not left out, unless it describes where the record comes from (METADATA_COLUMNS) or the user names it as
one to ignore.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fastvlm.errors import DataError

__all__ = [
    "CAPTION_METADATA",
    "GROUNDING_COLUMNS",
    "IMAGE_COLUMNS",
    "METADATA_COLUMNS",
    "READ_COLUMNS",
    "REFUSED_COLUMNS",
    "SYSTEM_COLUMN",
    "TURN_COLUMNS",
    "is_given",
    "refuse_unknown",
    "unknown_names",
    "with_nearest",
]

TURN_COLUMNS = ("conversations", "messages")
IMAGE_COLUMNS = ("image", "images", "image_path")
SYSTEM_COLUMN = "system"
GROUNDING_COLUMNS = ("objects", "looks")
REFUSED_COLUMNS = {
    "video": "FastVLM is trained on images and text only",
    "videos": "FastVLM is trained on images and text only",
    "audio": "FastVLM is trained on images and text only",
    "audios": "FastVLM is trained on images and text only",
    "tools": "FastVLM's chat template has no tools",
    "functions": "FastVLM's chat template has no tools",
}
READ_COLUMNS = (*TURN_COLUMNS, *IMAGE_COLUMNS, SYSTEM_COLUMN, *GROUNDING_COLUMNS)
# Where a record comes from and how it is filed; nothing of it could be shown to a model.
_IDS = ("id", "ids", "uid", "uuid", "key", "index", "idx", "image_id", "question_id", "sample_id", "__key__")
_ORIGINS = ("source", "sources", "dataset", "dataset_name", "data_source", "origin", "license", "timestamp", "__url__")
_FILING = ("subset", "split", "category", "task", "kind", "lang", "language", "width", "height", "metadata", "meta")
METADATA_COLUMNS = frozenset((*_IDS, *_ORIGINS, *_FILING, "__index_level_0__"))
# What img2dataset writes beside each image (its README, "Output format"); read by nobody where a caption is learnt.
CAPTION_METADATA = frozenset(
    ("caption", "url", "status", "error_message", "original_width", "original_height", "exif", "sha256", "md5")
)
# Other names of a column that are not spelt like it.
_ALIASES = {
    "img": "image",
    "imgs": "images",
    "picture": "image",
    "pictures": "images",
    "photo": "image",
    "photos": "images",
    "file_name": "image_path",
    "dialog": "conversations",
    "color": "colour",
    "colors": "colours",
    "bbox": "box",
}


def is_given(value: Any) -> bool:
    """False for null, an empty text and an empty list or object: Arrow gives each record all columns of its file."""
    return value is not None and not (isinstance(value, (str, bytes, list, tuple, Mapping)) and not value)


def unknown_names(names: Iterable[str], known: Collection[str], ignored: Collection[str] = ()) -> list[str]:
    """The names that are neither known nor to be ignored, in their order."""
    return [name for name in names if name not in known and name not in ignored]


def with_nearest(names: Sequence[str], known: Collection[str]) -> str:
    """The names for an error text, each with the known one that it is nearest to: ``'img' (did you mean 'image'?)``."""
    return ", ".join(f"{name!r}{_nearest(name, known)}" for name in names)


def _nearest(name: str, known: Collection[str]) -> str:
    lower = name.lower()
    alias = _ALIASES.get(lower)
    near = [alias] if alias in known else difflib.get_close_matches(lower, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def refuse_unknown(
    values: Mapping[str, Any],
    known: Collection[str],
    what: str,
    *,
    harmless: Collection[str] = (),
    ignored: Collection[str] = (),
) -> None:
    """Raise DataError if an object has a value under a name that nobody reads.

    Args:
        values: a record, a turn, an item.
        known: names that are read.
        what: begins the message, such as "it has" or "turn 3 has".
        harmless: names that need not be read.
        ignored: names that the user says need not be read.
    """
    given = [name for name, value in values.items() if is_given(value)]
    unknown = unknown_names(given, known, ignored)
    unknown = unknown_names(unknown, harmless)
    if unknown:
        raise DataError(
            f"{what} {with_nearest(unknown, known)}, which would not be read; known here: {', '.join(known)}. Rename "
            f"or remove it, or name it to be left out: --ignore {unknown[0]}"
        )
