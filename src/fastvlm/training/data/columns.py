"""Columns of a training record.

An unknown column is an error, because it may change what should be learned (an image under another name, a system
prompt, tools), unless it is one of METADATA_COLUMNS or the user lists it with --ignore.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastvlm.errors import DataError
from fastvlm.records.field_names import is_given, unknown_names, with_nearest

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
# Where a record comes from and how it is filed: nothing that a model could be shown.
_IDS = ("id", "ids", "uid", "uuid", "key", "index", "idx", "image_id", "question_id", "sample_id", "__key__")
_ORIGINS = ("source", "sources", "dataset", "dataset_name", "data_source", "origin", "license", "timestamp", "__url__")
_FILING = ("subset", "split", "category", "task", "kind", "lang", "language", "width", "height", "metadata", "meta")
METADATA_COLUMNS = frozenset((*_IDS, *_ORIGINS, *_FILING, "__index_level_0__"))
# What img2dataset writes next to each image (its README, "Output format"); not used for captions.
CAPTION_METADATA = frozenset(
    ("caption", "url", "status", "error_message", "original_width", "original_height", "exif", "sha256", "md5")
)


def refuse_unknown(
    values: Mapping[str, Any],
    known: Collection[str],
    what: str,
    *,
    harmless: Collection[str] = (),
    ignored: Collection[str] = (),
) -> None:
    """Raise DataError if an object has a value under an unknown name.

    Args:
        values: a record, a turn, an item.
        known: names that are read.
        what: begins the message, such as "it has" or "turn 3 has".
        harmless: other names that are allowed.
        ignored: names that the user allows.
    """
    given = [name for name, value in values.items() if is_given(value)]
    unknown = unknown_names(given, known, {*harmless, *ignored})
    if unknown:
        raise DataError(
            f"{what} {with_nearest(unknown, known)}, which would not be read; known here: {', '.join(known)}. Rename "
            f"or remove it, or name it to be left out: {' '.join(f'--ignore {name}' for name in unknown)}"
        )
